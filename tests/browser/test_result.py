"""The result by mouse, with a real run, real workers and a real browser: talk, blind test, measure, every export.

Pictures, light and dark, wide and narrow, are left in the folder that LORATORY_SCREENSHOTS names.
"""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from loratory.engine.paths import LoratoryHome
from tests.browser.chromium import let_layout_settle, open_model_choice, open_tab, reload, why_no_browser
from tests.browser.real_server import RealServer, contents_of, real_server
from tests.e2e.test_scripts_for_real import loratory
from tests.export.stand_in_converter import make_checkout
from tests.hub.repositories import OwnHub
from tests.hub.server import TOKEN

pytestmark = [pytest.mark.browser, pytest.mark.e2e]

LONGEST_ANSWER_TOKENS = 24
_NOTES_MEASURING = """() => {
  const look = () => {
    const [stop, status] = ['measure-stop', 'measure-status'].map((id) => document.getElementById(id));
    if (stop?.offsetParent && status?.textContent.trim()) window.sawMeasuring = true;
  };
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, attributes: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def hub():
    with OwnHub() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def server(tiny_model_folder, tmp_path_factory, hub):
    """Start a server on a home with one small run that was really trained."""
    if why_no_browser() is not None:
        pytest.skip(why_no_browser())
    home = tmp_path_factory.mktemp("result")
    settings = (
        f"model.id={tiny_model_folder}", "dataset.source=sample:loratory-faq", "dataset.max_samples=60",
        "training.max_steps=4", "training.max_length=256", "training.learning_rate=0.01", "adapter.method=lora",
        "run.name=tiny faq",
    )  # fmt: skip
    changes = [word for setting in settings for word in ("--set", setting)]
    loratory("train", "quickstart-cpu", *changes, "--json", home=LoratoryHome(home))
    checkout = make_checkout(tmp_path_factory.mktemp("converter") / "llama.cpp")
    with real_server(
        home, forks=True,
        HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1",
        LORATORY_LLAMA_CPP=str(checkout),
    ) as server:  # fmt: skip
        yield server


@pytest.fixture(scope="module")
def address(server: RealServer) -> str:
    """Where the pages of `conftest` are."""
    return server.url


def load(page: Page) -> None:
    open_tab(page, "Chat")
    expect(page.locator("#chat-run input")).to_have_value(re.compile("tiny faq"))
    open_model_choice(page)  # an earlier page may have loaded the model
    page.locator("#chat-load").click()
    expect(page.locator("#chat-state")).to_contain_text("is loaded")
    expect(page.locator("#chat-unload")).to_have_text("Unload")
    expect(page.locator("#suggestions button").first).to_be_visible()


@pytest.fixture(scope="module")
def export_page(kept_page: Page) -> Page:
    """Open the Export tab and wait for the first format: its answer would undo another choice."""
    open_tab(kept_page, "Export")
    expect(kept_page.locator("#export-use")).to_contain_text("loratory export")
    return kept_page


def shorten_answers(page: Page) -> None:
    """Let answers be short, and differ: the blind test does not ask about a pair of identical ones."""
    page.locator("#chat-settings button").first.click()
    page.locator("#chat-settings").get_by_label(re.compile("Max new tokens")).wait_for()
    let_layout_settle(page)
    for label, value in (("Max new tokens", LONGEST_ANSWER_TOKENS), ("number input for Temperature", 2)):
        number = page.locator("#chat-settings").get_by_label(re.compile(label))
        number.fill(str(value))
        number.press("Tab")


def pair_to_judge(page: Page) -> tuple[Locator, int]:
    """Return the verdict buttons once two answers are shown, and how many identical pairs came before them."""
    verdicts, identical = (
        page.locator("#blind-verdict .verdicts"),
        page.locator("#blind-pair", has_text="are identical"),
    )
    for passed in range(20):
        expect(verdicts.or_(identical).or_(page.locator("#blind-trouble .trouble")).first).to_be_visible()
        expect(page.locator("#blind-trouble")).to_have_text("")
        if verdicts.is_visible():
            return verdicts, passed
        page.locator("#blind-next").click()
        expect(identical).to_have_count(0)
    raise AssertionError("all pairs are identical")


def test_a_conversation_is_saved_and_the_blind_test_hides_names_until_the_choice(page, server):
    load(page)
    shorten_answers(page)
    page.locator("#suggestions [data-pick='0']").click()
    expect(page.locator("#chat-question textarea")).not_to_have_value("")
    page.locator("#chat-send").click()
    expect(page.locator("#transcript .retry")).to_be_visible()

    answers = page.locator("#transcript .answer")
    expect(answers).to_have_count(3)  # base, tuned and the reference
    for length in re.findall(r"(\d+) tokens? ·", " ".join(page.locator("#transcript .figures").all_inner_texts())):
        assert int(length) <= LONGEST_ANSWER_TOKENS
    expect(answers.nth(1)).to_contain_text(re.compile(r"context \d+ of 512"))
    page.locator("#transcript .prompt").click()
    expect(page.locator("#transcript .exact")).to_contain_text("<|im_start|>assistant")
    expect(page.locator("#chat-send")).to_be_enabled()
    page.locator("#transcript .retry").click()
    expect(page.locator("#transcript .question")).to_contain_text("2 of 2")  # no answer is written any more
    expect(page.locator("#transcript .question")).to_have_count(1)

    with page.expect_download() as download:
        page.locator("#chat-links a", has_text="JSON").click()
    assert re.search(r"tiny.*-chat\.json$", download.value.suggested_filename)
    (turn,) = json.loads(download.value.path().read_text())["turns"]
    assert turn["reference"]
    assert len(turn["others"]) == 1
    assert {answer["branch"] for answer in turn["answers"]} == {"base", "tuned"}

    page.locator("#chat-mode label", has_text="Blind test").click()
    page.locator("#blind-next").click()
    pair_to_judge(page)
    # All but what the models said themselves: names of classes and places, titles, headings.
    markup = page.locator("#blind-pair").evaluate(
        "element => { const copy = element.cloneNode(true); "
        "copy.querySelectorAll('.text, .question').forEach((said) => said.replaceChildren()); return copy.outerHTML; }"
    )
    assert "Left" in markup
    assert not re.search(r"base|tuned", markup, re.IGNORECASE)

    page.keyboard.press("1")
    expect(page.locator("#blind-tally")).to_contain_text("You preferred")
    expect(page.locator("#blind-tally")).to_contain_text("sign test")
    pair_to_judge(page)  # the next one, which was begun at once

    (remaining,) = (server.home / "runs").glob("*/*/evaluations/blind-test-final.jsonl")
    assert "left" in {json.loads(line)["verdict"] for line in remaining.read_text().splitlines()}

    reload(page)
    open_tab(page, "Chat")
    expect(page.locator("#transcript .question")).to_contain_text(turn["question"])
    page.locator("#transcript .edit").click()
    expect(page.locator("#chat-question textarea")).to_have_value(turn["question"])
    expect(page.locator("#transcript .question")).to_have_count(0)


def test_measuring_continues_through_a_reload_and_is_shown_row_by_row(page, server):
    open_tab(page, "Chat")
    expect(page.locator("#chat-run input")).to_have_value(re.compile("tiny faq"))  # without it, nothing is measured
    page.locator("#chat-mode label", has_text="Measure").click()
    expect(page.locator("#measure-start")).to_be_enabled()
    for name, value in (("answered_rows", "6"), ("max_new_tokens", "16")):
        field = page.locator(f"#measure-{name} input")
        field.fill(value)
        field.press("Tab")
    # It may be over before this process looks: the page itself notes that it could be stopped, and said how far it was.
    page.evaluate(_NOTES_MEASURING)
    page.locator("#measure-start").click()
    page.wait_for_function("window.sawMeasuring")

    reload(page)
    open_tab(page, "Chat")
    page.locator("#chat-mode label", has_text="Measure").click()
    expect(page.locator("#measure-result .facts")).to_be_visible()

    expect(page.locator("#measure-result")).to_contain_text("perplexity, tuned")
    expect(page.locator("#measure-answers section")).to_have_count(5)
    page.locator("#measure-answers [data-pick='page:1']").click()
    expect(page.locator("#measure-answers section")).to_have_count(1)
    expect(page.locator("#measure-across tr[data-pick]")).to_have_count(1)


def test_the_error_of_a_start_stays_while_the_page_polls(export_page):
    page, status = export_page, export_page.locator("#export-status")
    folder = page.locator("#export-folder input, #export-folder textarea").first
    proposal = folder.input_value()
    folder.fill("/etc/loratory")
    page.locator("#export-start").click()
    for _ in range(3):
        with page.expect_response(lambda response: "/component_server" in response.url):
            expect(status).to_contain_text("may not write to /etc/loratory")
    expect(status).to_contain_text("may not write to /etc/loratory")

    folder.fill(proposal)

    expect(status).not_to_contain_text("may not write")


# An adapter alone is written on fakes, and for real by the push below.
@pytest.mark.parametrize(("form", "file"), [("Merged model", "model.safetensors"), ("GGUF", ".gguf")])
def test_a_form_is_written_and_verified(export_page, server, form, file):
    page = export_page
    page.locator("#export-form label", has_text=form).click()
    folder_box = page.locator("#export-folder input, #export-folder textarea").first
    expect(folder_box).to_have_value(re.compile(rf"tiny-faq-{form.split()[0].lower()}"))
    folder = Path(folder_box.input_value())
    if form == "GGUF":
        # The stand-in for the converter writes less than llama.cpp needs to load it.
        page.locator("#export-verify input").uncheck()
    page.locator("#export-start").click()
    # What an earlier export wrote is shown until this one begins: the folder tells them apart.
    path = page.locator("#export-result .copyable pre").first
    expect(path).to_have_text(str(folder))

    expect(page.locator("#export-result")).to_contain_text(file)
    verdict = "Not verified." if form == "GGUF" else "20 of 20 greedy answers are identical"
    expect(page.locator("#export-result")).to_contain_text(verdict)
    assert folder.is_relative_to(server.home / "exports")
    assert list(folder.glob(f"*{file}"))
    page.locator("#make-zip").click()
    with page.expect_download() as download:
        page.locator("#download-zip").click()
    assert download.value.path().read_bytes()[:2] == b"PK"


def test_a_push_ends_in_one_commit_of_a_private_repository(export_page, server, hub):
    page = export_page
    page.locator("#export-form label", has_text="Hub").click()
    repository = page.locator("#export-repository input, #export-repository textarea").first
    repository.fill("lab/tiny-faq")
    repository.press("Tab")
    page.locator("#export-start").click()
    expect(page.locator("#export-result a")).to_contain_text("lab/tiny-faq")

    assert "lab/tiny-faq" in hub.repositories
    expect(page.locator("#export-before tr[data-pick]").first).to_contain_text("On the Hub")


def test_the_token_is_nowhere_after_a_push_from_the_page(export_page, server, hub):
    """Runs after the push: neither the home, nor the server's log, nor what a page shows of it holds the token."""
    assert "lab/tiny-faq" in hub.repositories, "the push comes first"
    page = export_page
    page.locator("#export-form label", has_text="Hub").click()
    expect(page.locator("#export-result a")).to_contain_text("lab/tiny-faq")

    assert TOKEN not in page.content()
    files = contents_of(server.home)
    assert server.home / "server.log" in files
    assert not [path for path, content in files.items() if TOKEN.encode() in content]


def test_votes_become_pairs_that_are_trained_on_and_compared_three_ways(page, server):
    """The road of preferences: vote in Chat and in the blind test, use the votes, train from the run, chat with all three."""
    load(page)
    shorten_answers(page)
    page.locator("#suggestions [data-pick='0']").click()
    expect(page.locator("#chat-question textarea")).not_to_have_value("")
    page.locator("#chat-send").click()
    expect(page.locator("#chat-send")).to_be_enabled()  # until it has ended, the last answer may be shown once more
    page.locator("#transcript .vote").nth(1).click()
    expect(page.locator("#transcript .vote[aria-pressed='true']")).to_have_count(1)
    let_layout_settle(page)  # the vote is drawn, and moves what is above it
    page.locator("#chat-mode label", has_text="Blind test").click()
    page.locator("#blind-next").click()
    files = list((server.home / "runs").glob("*/*/evaluations/blind-test-final.jsonl"))  # of an earlier test
    count = sum(len(file.read_text().splitlines()) for file in files)
    for _ in range(2):
        verdicts, identical_pairs = pair_to_judge(page)
        count += identical_pairs + 1
        verdicts.locator("[data-pick='right']").click()
        expect(page.locator("#blind-tally")).to_contain_text(
            re.compile(rf"\b({count}|{count + 1}) pairs? judged")  # the next one may have been identical already
        )

    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick]", has_text="tiny faq").locator("td.name").last.click()
    page.locator("#run-train-on").click()
    page.locator("#tabs button[role=tab].selected:has-text('Method')").wait_for()  # it would leave the next tab again
    expect(page.locator("#draft-side")).to_contain_text("tiny faq")
    open_tab(page, "Chat")
    page.locator("#chat-mode label", has_text="Votes").click()
    expect(page.locator("#votes-list section").first).to_be_visible()
    page.locator("#votes-cut-off input").check()
    expect(page.locator("#votes-use")).to_be_enabled()
    page.locator("#votes-use").click()

    expect(page.locator("#dataset-summary")).to_contain_text("preference pairs")
    expect(page.locator("#next-step-line")).to_contain_text("DPO")  # follows the rows
    page.locator("#next-step-start").click()
    expect(page.locator("#confirm-start")).to_contain_text("1,000 times the usual 1e-05 for LoRA, DPO")
    page.locator("#really-start").click()
    page.locator("#next-step-run .go[data-pick^='chat']").click()
    expect(page.locator("#chat-state")).to_contain_text("is loaded")
    expect(page.locator("#chat-branches label", has_text="All three")).to_be_visible()
    page.locator("#chat-question textarea").fill("What does the rank do?")
    page.locator("#chat-send").click()
    expect(page.locator("#transcript .edit")).to_have_count(2)  # no answer is written any more

    earlier, newest = page.locator("#transcript .answers").all()
    assert earlier.locator("h4").all_inner_texts()[:2] == ["Base model", "Tuned"], "whose answers these were"
    names = newest.locator("h4").all_inner_texts()
    assert [name.partition(":")[0] for name in names] == ["Base model", "Supervised", "Preferred"]
    votes = [json.loads(line) for line in (server.home / "votes" / "votes.jsonl").read_text().splitlines()]
    assert {vote["source"] for vote in votes} == {"chat", "blind test"}
    (snapshot,) = (server.home / "uploads").glob("votes-*.jsonl")
    assert len(snapshot.read_text().splitlines()) == len(votes)

"""The Data tab in a real browser, on a real server with a tiny model: what goes wrong can be put right where it is shown."""

import json
import re
import threading
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from loratory.engine.data.contract import SearchProgress
from loratory.engine.models.prepared import ModelProgress
from loratory.ui.backend.models import Tokenizers
from tests.browser.chromium import barriers, fits_its_window, open_page, open_tab
from tests.browser.real_server import real_server
from tests.browser.show_fake import page_of
from tests.data.pictures import picture
from tests.fake_inspector import QUESTIONS
from tests.fake_services import fake_services

pytestmark = pytest.mark.browser


LONG_ROWS = 60_000
LONGER_THAN_A_TEST = 3600  # seconds


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "alpaca.json").write_text(json.dumps([alpaca_row(number) for number in range(999)]))
    (folder / "sharegpt-tools.json").write_text(json.dumps([row_with_tools(number) for number in range(300)]))
    (folder / "problems.jsonl").write_text("\n".join(lines_with_problems()) + "\n")
    (folder / "odd-columns.csv").write_text("q,a,source\n" + "".join(f'"{q}","{a}",book\n' for q, a in QUESTIONS))
    talks = (
        [("customer", f"It is late ({n})."), ("note", "angry"), ("Support agent", f"I am sorry ({n}).")]
        for n in range(9)
    )
    lines = (json.dumps({"conversations": [{"from": who, "value": text} for who, text in talk]}) for talk in talks)
    (folder / "talks.jsonl").write_text("\n".join(lines))
    (folder / "red.png").write_bytes(picture("red", (900, 450)))
    (folder / "broken.png").write_bytes(picture("red", (900, 450))[:60])
    rows = [
        {"image": name, "prompt": "<image>Which color?", "completion": "Red."} for name in ("red.png", "broken.png")
    ]
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (folder / "long.jsonl").open("w") as file:
        for number in range(LONG_ROWS):
            file.write(json.dumps({"instruction": f"Question {number}?", "output": f"Answer {number}. " * 20}) + "\n")
    return folder


def alpaca_row(number):
    question, answer = QUESTIONS[number % len(QUESTIONS)]
    return {"instruction": question, "input": "", "output": f"{answer} " * (1 + number % 7)}


def row_with_tools(number):
    weather = {"name": "get_weather", "description": "Weather of a place.", "parameters": {"type": "object"}}
    city = ("Oslo", "Lima", "Pune", "Bern")[number % 4]
    turns = [
        ("human", f"What is the weather in {city}?"),
        ("function_call", json.dumps({"name": "get_weather", "arguments": {"place": city}})),
        ("observation", json.dumps({"degrees": number % 30})),
        ("gpt", f"It is {number % 30} degrees in {city}."),
    ]
    return {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": json.dumps([weather])}


def lines_with_problems():
    """Four hundred lines, of which every third has something wrong or odd."""
    lines = []
    for number in range(400):
        question, answer = QUESTIONS[number % len(QUESTIONS)]
        turns = [{"role": "user", "content": f"{question} ({number})"}, {"role": "assistant", "content": answer}]
        whole = json.dumps({"messages": turns})
        wrong = (
            whole[: len(whole) // 2],
            json.dumps({"messages": turns[:1]}),
            json.dumps({"messages": [turns[0], {"role": "assistant", "content": ""}]}),
            json.dumps({"messages": [turns[0], {"role": "narrator", "content": "…"}]}),
            json.dumps([1, 2]),
            json.dumps({"messages": [turns[0], turns[0], turns[1]]}),
            json.dumps({"messages": [*turns, turns[0]]}),
            json.dumps({"messages": [turns[0], {"role": "assistant", "content": "It ends with <|im_end|> always."}]}),
        )
        lines.append(wrong[number // 3 % len(wrong)] if number % 3 == 2 else whole)
    return lines


@pytest.fixture(scope="module")
def server(files, tmp_path_factory):
    with real_server(tmp_path_factory.mktemp("home"), forks=True, LORATORY_DATA=str(files)) as running:
        yield running


@pytest.fixture(scope="module")
def address(server):
    """Where `kept_page` is."""
    return server.url


@pytest.fixture
def page(kept_page: Page) -> Page:
    """One page for tests that each open another file; a model is chosen by the last of them."""
    expect(kept_page.locator("#catalog tr[data-pick]").first).to_be_attached()
    return kept_page


def open_source(page: Page, source: object) -> None:
    open_tab(page, "Data")
    box = page.locator("#dataset-own textarea, #dataset-own input")
    box.fill(str(source))
    box.press("Enter")


def choose(page: Page, selector: str, option: str | re.Pattern[str]) -> None:
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def test_columns_that_no_format_fits_are_mapped_on_the_page(page, files):
    open_source(page, files / "odd-columns.csv")
    expect(page.locator("#dataset-summary .trouble")).to_contain_text("No format fits")

    choose(page, "#mapping .block:has-text('Column for prompt')", f"q: {QUESTIONS[0][0]}")
    expect(page.locator("#dataset-summary .trouble")).to_contain_text("needs the column 'completion'")
    choose(page, "#mapping .block:has-text('Column for completion')", re.compile("^a: It scales the adapter"))

    expect(page.locator("#row-shown .turn.learned")).to_contain_text("It scales the adapter's update")
    expect(page.locator("#facts")).to_contain_text("rows kept")

    # A wrong format hides nothing: another one can be chosen at once.
    choose(page, "#dataset-format", "sharegpt")
    expect(page.locator("#dataset-summary .trouble")).to_contain_text("needs the column 'conversations'")
    expect(page.locator("#mapping")).to_contain_text("Column for conversations")
    choose(page, "#dataset-format", "alpaca")
    expect(page.locator("#mapping")).to_contain_text("Column for instruction")


def test_roles_that_are_unknown_are_mapped_with_their_turns_beside_them(page, files):
    open_source(page, files / "talks.jsonl")
    expect(page.locator("#facts .trouble")).to_contain_text("unknown role 'customer'")
    table = page.locator("#role-map")
    expect(table.locator("tbody tr", has_text="support agent")).to_contain_text("I am sorry (0).")

    assert barriers(page) == []
    for name, role in (("customer", "user"), ("support agent", "assistant"), ("note", "leave out")):
        table.get_by_role("combobox", name=f"{name} is read as").select_option(role)
    table.get_by_role("button", name="Apply roles").press("Enter")

    expect(page.locator("#facts")).to_contain_text("rows kept")
    expect(page.locator("#row-shown .turn")).to_have_count(2)
    expect(page.locator("#row-shown .turn.learned")).to_contain_text("I am sorry (0).")
    expect(table.get_by_role("combobox", name="note is read as")).to_have_value("")


def test_rows_with_problems_are_listed_by_kind_and_gone_through(page, files):
    open_source(page, files / "problems.jsonl")
    expect(page.locator("#problems .kinds").first).to_contain_text("rows skipped")

    page.locator("#show input").click()
    page.get_by_role("option", name=re.compile("^skipped")).click()
    expect(page.locator("#row-shown")).to_contain_text("skipped")
    first = page.locator("#row input").input_value()
    page.get_by_role("button", name="Next →").click()
    expect(page.locator("#row input")).not_to_have_value(first)
    expect(page.locator("#row-shown")).to_contain_text("skipped")

    page.locator("#problems button", has_text="Later").click()
    expect(page.locator("#problems .pager")).to_contain_text("16–30 of 85")
    page.locator("#problems button", has_text="Kept with warnings").click()
    expect(page.locator("#problems")).to_contain_text("Warning")
    expect(page.locator("#row-shown .notice").first).to_be_visible()


@pytest.mark.parametrize("width", [1366, 390])
def test_pictures_of_rows_are_shown_with_their_sizes(browser, server, files, width):
    page = open_page(browser, server.url, width=width)
    open_source(page, files / "pictures.jsonl")

    image = page.locator("#row-shown figure.picture img")
    expect(image).to_have_attribute("alt", "Image 1 of the row")
    expect(image).to_have_js_property("naturalWidth", 640)
    expect(page.locator("#row-shown .turn .chip")).to_have_text("▣ image 1")
    expect(page.locator("#row-shown figcaption")).to_have_text("Image 1 · 900 × 450 pixels.")
    expect(page.locator("#problems .kinds").first).to_contain_text("1 row skipped")
    fits_its_window(page)
    assert barriers(page) == []
    page.context.close()


def test_a_search_shows_its_way_and_ends(page, files):
    open_source(page, files / "long.jsonl")
    expect(page.locator("#row-shown")).to_contain_text("Question 0?")  # opened: its first row is put over a found one
    find = page.locator("#row-find textarea, #row-find input")

    find.fill("question 59999?")
    find.press("Enter")
    expect(page.locator("#row input")).to_have_value("60000")
    expect(page.locator("#row-shown")).to_contain_text("Answer 59999.")
    find.fill("nothing says this")
    find.press("Enter")
    expect(page.locator("#row-found")).to_contain_text("No matching rows")
    expect(page.locator("#row-find-stop")).to_be_hidden()


def test_a_search_that_reports_all_the_time_is_stopped(browser, tmp_path, monkeypatch):
    services, is_over = fake_services(tmp_path), threading.Event()

    def search(dataset, text, *, after_row):
        rows = 0
        try:
            while not is_over.wait(0.01):
                yield SearchProgress(rows=(rows := rows + 1), total_rows=None)
        finally:
            is_over.set()

    monkeypatch.setattr(services.inspector, "find_steps", search)
    with page_of(services) as address:
        page = open_page(browser, address)
        open_tab(page, "Data")
        page.locator("#samples [data-pick]").first.click()
        expect(page.locator("#row-shown .turn").first).to_be_visible()
        for attempt in range(5):  # what the search says last may come later than the answer to a click
            is_over.clear()
            page.locator("#row-find textarea, #row-find input").fill(f"nothing says this {attempt}")
            page.locator("#row-find textarea, #row-find input").press("Enter")
            expect(page.locator("#row-found")).to_contain_text("Searching")
            page.locator("#row-find-stop").click()
            expect(page.locator("#row-found")).to_have_text(re.compile(r"^\s*The search was stopped\.\s*$"))
            expect(page.locator("#row-find-stop")).to_be_hidden()
            assert is_over.wait(LONGER_THAN_A_TEST)
        page.context.close()


def test_tokens_have_edges_and_say_their_ids(page, files, tiny_model_folder):
    open_source(page, files / "alpaca.json")
    expect(page.locator("#dataset-summary")).to_contain_text("alpaca.json")  # no longer the one before
    open_tab(page, "Model")
    box = page.locator("#model-own textarea, #model-own input")
    box.fill(str(tiny_model_folder))
    box.press("Enter")
    expect(page.locator("#model-details")).to_contain_text("LlamaForCausalLM")
    open_tab(page, "Data")

    tokens = page.locator("#row-shown .tokens i")
    expect(tokens.nth(3)).to_be_visible()
    tokens.nth(3).hover()

    expect(tokens.nth(3)).to_have_attribute("title", re.compile(r"masked, token \d+"))
    assert "inset" in tokens.nth(3).evaluate("token => getComputedStyle(token).boxShadow")


def test_nothing_is_wider_than_a_narrow_window(browser, server, files):
    page = open_page(browser, server.url, width=800)
    contents = {
        "problems.jsonl": ("#problems .kinds", "rows skipped"),
        "odd-columns.csv": ("#dataset-summary .trouble", "No format fits"),
        "sharegpt-tools.json": ("#facts", "rows kept"),
    }
    for name, (selector, text) in contents.items():
        open_source(page, files / name)
        expect(page.locator(selector).first).to_contain_text(text)
        expect(page.locator("#reading")).to_be_visible()
        fits_its_window(page)
    page.context.close()


def test_a_download_is_seen_on_both_tabs_and_tokens_appear_by_themselves(browser, tmp_path):
    arrival = threading.Event()

    def resolve(model, report):
        report(ModelProgress("downloading", "Downloading the demo model.", 41_000_000, 93_000_000))
        assert arrival.wait(LONGER_THAN_A_TEST)

    with page_of(replace(fake_services(tmp_path), tokenizers=Tokenizers(resolve))) as address:
        page = open_page(browser, address)
        try:
            expect(page.locator("#catalog tr[data-pick]").first).to_be_visible()
            page.locator("#catalog tr[data-pick]").first.click()
            expect(page.locator("#model-tokenizer")).to_contain_text("41.0 MB of 93.0 MB")
            open_tab(page, "Data")
            page.locator("#samples [data-pick]").first.click()
            expect(page.locator("#data-tokenizer")).to_contain_text("41.0 MB of 93.0 MB")
            expect(page.locator("#row-shown .turn").first).to_be_visible()
            assert page.locator("#row-shown .tokens").count() == 0

            arrival.set()

            expect(page.locator("#row-shown .tokens")).to_be_visible()
            expect(page.locator("#data-tokenizer")).to_have_text("")
        finally:
            arrival.set()
            page.context.close()


def test_a_model_that_is_found_late_is_known_to_rows_that_are_being_read(browser, tmp_path, monkeypatch):
    match_event, services = threading.Event(), fake_services(tmp_path)
    describe = services.inspector.model_details

    def describe_slowly(model):
        assert match_event.wait(LONGER_THAN_A_TEST)
        return describe(model)

    monkeypatch.setattr(services.inspector, "model_details", describe_slowly)
    with page_of(services) as address:
        page = open_page(browser, address)
        try:
            page.locator("#catalog tr[data-pick]").first.click()
            open_tab(page, "Data")
            page.locator("#samples [data-pick]").first.click()
            expect(page.locator("#row-shown .turn").first).to_be_visible()

            match_event.set()

            expect(page.locator("#row-shown .tokens")).to_be_visible()
        finally:
            match_event.set()
            page.context.close()


def test_the_line_of_the_cut_moves_by_keyboard_and_its_release_sets_max_length(browser, tmp_path, monkeypatch):
    services = fake_services(tmp_path)
    check = services.inspector.check

    def check_with_cuts(dataset, model=None, max_length=1024, **more):
        report = check(dataset, model, max_length, **more)
        cut = 100 if max_length < 240 else 0
        lengths = report.token_lengths.model_copy(update={"over_max_length": cut})
        return report.model_copy(update={"token_lengths": lengths, "lost_trained_tokens": 9 * cut})

    monkeypatch.setattr(services.inspector, "check", check_with_cuts)
    with page_of(services) as address:
        page = open_page(browser, address)
        page.locator("#catalog tr[data-pick]").first.click()
        open_tab(page, "Data")
        page.locator("#samples [data-pick]").first.click()
        page.locator("#lengths-fold summary").click()
        line = page.get_by_role("slider", name="Max length")
        expect(line).to_have_value("240")
        expect(page.locator(".cut-line rect.cut")).to_have_count(1)

        for _ in range(6):
            line.press("PageDown")
        about = "About 138 rows and 5,027 trained tokens cut at 72 tokens."
        expect(line).to_have_attribute("aria-valuetext", about)
        expect(page.locator(".cut-line p")).to_have_text(about)
        expect(page.locator(".cut-line rect.cut")).to_have_count(5)

        expect(line).to_have_attribute("aria-valuetext", "100 rows and 900 trained tokens cut at 72 tokens.")
        expect(line).to_be_focused()
        assert barriers(page) == []
        expect(page.locator("#applied")).to_contain_text("Max length 240 → 72")
        expect(page.locator("#next-step .alarm")).to_have_text("48% of rows cut")
        page.locator("#applied [data-pick=undo]").click()
        expect(line).to_have_value("240")
        page.context.close()

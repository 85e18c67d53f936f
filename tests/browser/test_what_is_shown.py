"""What a page shows is what its buttons act on, in a real browser, on fakes: runs, confirmations, pairs of answers."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from loratory.engine.evaluation.votes import Votes
from loratory.engine.runs.control import change_notes, request_stop
from loratory.ui.services import Services
from tests.browser.chromium import (
    barriers,
    choose_model_and_data,
    let_layout_settle,
    open_model_choice,
    open_page,
    open_tab,
)
from tests.evaluation.test_votes import HOSTILE, a_vote
from tests.fake_launcher import ENDLESS
from tests.fake_services import fake_services, invent_runs
from tests.invented_runs import a_config

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    invent_runs(services.runs)
    return services


def pick_run(page: Page, title: str) -> None:
    """Look at the newest run of these words on the Runs tab."""
    page.locator("#runs-table tr[data-pick]", has_text=title).first.locator("td.name").click()
    expect(page.locator("#one-run-heading h2")).to_contain_text(title)


def close_run(page: Page) -> None:
    """Close what lies over the table and the tabs, for the next test on the same page."""
    page.locator("#run-close").click()
    expect(page.locator("#run-details")).to_be_hidden()


def load_run(page: Page, title: str) -> None:
    """Load the newest run of these words for talking."""
    open_tab(page, "Chat")
    open_model_choice(page)
    page.locator("#chat-run input").click()
    page.get_by_role("option", name=title).first.click()
    page.locator("#chat-load").click()
    expect(page.locator("#chat-state")).to_contain_text(re.compile(f"{re.escape(title)}.* is loaded"))


def test_a_pair_of_answers_goes_when_someone_loads_another_run(page, browser, address):
    load_run(page, "faq, rank 16")
    page.locator("#chat-mode label", has_text="Blind test").click()
    page.locator("#blind-next").click()
    expect(page.locator("#blind-verdict")).to_be_in_viewport(ratio=1)
    expect(page.locator("#blind-pair .answer").last).to_be_in_viewport()
    expect(page.locator("#blind-next")).to_be_in_viewport(ratio=1)
    assert barriers(page) == []

    other = open_page(browser, address)
    load_run(other, "Qwen3-0.6B")

    expect(page.locator("#blind-verdict")).to_be_hidden()
    expect(page.locator("#blind-pair")).not_to_contain_text("Question")
    other.context.close()  # not before: a page that goes takes along what it has not sent yet


def test_votes_are_open_to_everyone_and_become_the_data(kept_page, services):
    page = kept_page
    Votes(services.home).save(a_vote(left=HOSTILE))
    open_tab(page, "Chat")
    page.locator("#chat-mode label", has_text="Votes").click()
    expect(page.locator("#votes-list section")).to_have_count(1)
    assert barriers(page) == []

    page.locator("#votes-use").click()

    expect(page.locator("#dataset-own").locator("input, textarea")).to_have_value(
        re.compile(r"/uploads/votes-.*\.jsonl$")
    )
    page.locator("#applied [data-pick='undo']").click()
    expect(page.locator("#dataset-own").locator("input, textarea")).to_have_value("")


def test_a_confirmation_names_its_run_and_goes_when_another_one_is_shown(kept_page, services):
    page = kept_page
    run = services.launcher.start(a_config(run__name="takes hours", training__max_steps=ENDLESS))
    open_tab(page, "Runs")
    pick_run(page, "takes hours")
    page.locator("#one-cancel").click()
    expect(page.locator("#one-confirm-cancel")).to_contain_text(f"takes hours · {run.id[-4:]} stops now")
    expect(page.locator("#one-confirm-cancel")).to_contain_text("Stop and save loses nothing")
    pick_run(page, "first try")
    expect(page.locator("#one-confirm-cancel")).to_be_hidden()

    page.locator("#run-delete").click()
    expect(page.locator("#confirm-delete")).to_contain_text("first try, full length")
    pick_run(page, "takes hours")
    expect(page.locator("#confirm-delete")).to_be_hidden()
    page.locator("#one-cancel").click()
    page.locator("#one-keep-running").click()
    expect(page.locator("#one-confirm-cancel")).to_be_hidden()
    assert not run.folder.cancel_request.exists()

    page.locator("#one-cancel").click()
    page.locator("#one-really-cancel").click()
    expect(page.locator("#one-run-heading")).to_contain_text("stopped")
    expect(page.locator("#one-confirm-cancel")).to_be_hidden()
    assert run.folder.cancel_request.exists()
    close_run(page)


def test_a_typed_note_stays_while_runs_are_ticked_and_tabs_are_turned(kept_page, services):
    page = kept_page
    run = services.runs.list()[-1]
    open_tab(page, "Runs")
    pick_run(page, "first try")
    page.locator("#run-notes button").first.click()
    note = page.locator("#note-text textarea")
    let_layout_settle(page)
    note.fill("What I found out so far")

    page.locator("#runs-table tbody .tick").first.click()
    expect(page.locator("#runs-table tbody .tick").first).to_have_attribute("aria-checked", "true")
    expect(note).to_have_value("What I found out so far")
    open_tab(page, "Model")
    change_notes(run.folder, tags=("looked at again",))  # what the page shows once it has asked again
    open_tab(page, "Runs")
    expect(page.locator("#run-facts")).to_contain_text("looked at again")
    expect(note).to_have_value("What I found out so far")

    page.locator("#note-save").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Saved.")
    expect(page.locator("#run-facts")).to_contain_text("What I found out so far")
    pick_run(page, "Qwen3-0.6B")
    expect(note).to_have_value("")
    close_run(page)


def test_a_run_that_ends_while_it_is_looked_at_offers_what_can_be_done_then(kept_page, services):
    page = kept_page
    run = services.launcher.start(a_config(run__name="soon over", training__max_steps=ENDLESS))
    open_tab(page, "Runs")
    pick_run(page, "soon over")
    expect(page.locator("#run-delete")).to_be_hidden()

    request_stop(run)  # not by the page, which would know of it
    expect(page.locator("#one-run-heading")).to_contain_text("stopped")
    expect(page.locator("#run-delete")).to_be_visible()
    expect(page.locator("#run-train-on")).to_be_visible()
    expect(page.locator("#run-facts")).to_contain_text("Duration")

    page.keyboard.press("Escape")  # the run lies over the table
    expect(page.locator("#run-details")).to_be_hidden()


def write_line(log: Path, line: str) -> None:
    """Append, as a worker does: a page may find a file that is overwritten empty for a moment."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}")


def test_the_log_shows_its_end_and_holds_still_while_someone_reads_above(kept_page, services):
    page = kept_page
    run = services.launcher.start(a_config(run__name="says much", training__max_steps=ENDLESS))
    lines = [f"line {number} of the log" for number in range(200)]
    run.folder.log.write_text("\n".join(lines), encoding="utf-8")
    open_tab(page, "Runs")
    pick_run(page, "says much")
    page.get_by_text("Worker log").last.click()
    log = page.locator("#one-run-log .follows-end")
    expect(log).to_contain_text("line 199 of the log")
    element = log.element_handle()
    shows_its_end = "(log) => log.clientHeight && log.scrollHeight - log.clientHeight - log.scrollTop < 4"

    page.wait_for_function(shows_its_end, arg=element)
    assert log.evaluate("(log) => log.scrollHeight > 2 * log.clientHeight")
    write_line(run.folder.log, "one more")
    expect(log).to_contain_text("one more")
    page.wait_for_function(shows_its_end, arg=element)

    # Until the browser has told the page that it was scrolled, what comes may still move it.
    log.evaluate(
        "(log) => new Promise((done) => { log.addEventListener('scroll', done, {once: true}); log.scrollTop = 100; })"
    )
    write_line(run.folder.log, "and another")
    expect(log).to_contain_text("and another")
    assert log.evaluate("(log) => log.scrollTop") == 100
    close_run(page)


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_term_explains_itself_to_a_pointer_and_to_the_keyboard(browser, address, is_dark):
    page = open_page(browser, address, width=390, dark=is_dark)
    choose_model_and_data(page)
    explanation = page.locator("#explanation")
    term = page.locator("#facts .term").first

    term.hover()
    expect(explanation).to_have_text(re.compile(r"\w.*\.$"))
    expect(explanation).to_be_in_viewport(ratio=1)
    page.locator("#facts").hover(position={"x": 2, "y": 2})
    expect(explanation).to_be_hidden()

    term.focus()
    expect(explanation).to_be_visible()
    expect(term).to_have_accessible_description(explanation.inner_text())
    assert barriers(page) == []
    page.keyboard.press("Escape")
    expect(explanation).to_be_hidden()

    page.evaluate(
        "document.querySelector('#facts').insertAdjacentHTML('beforeend', '<p class=legend><span>reward margin</span></p>')"
    )
    expect(page.locator("#facts .legend .term")).to_have_text("reward margin")
    for _ in range(3):  # a mark inside a mark would add one in each frame
        page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#facts .legend .term")).to_have_count(1)
    page.context.close()


def test_the_parts_of_the_memory_are_shown_on_demand_and_stay_open(browser, address):
    page = open_page(browser, address)
    choose_model_and_data(page)
    legend = page.locator("#panel .legend")
    expect(page.locator("#panel .verdict")).to_contain_text("Fits in memory.")
    expect(legend).to_be_hidden()

    page.locator("#memory-parts summary").click()
    before = legend.inner_text()
    open_tab(page, "Method")
    page.locator("#panel .legend").wait_for()
    page.locator("#rank input[type=number]").fill("64")
    page.keyboard.press("Enter")

    expect(legend).not_to_have_text(before, use_inner_text=True)
    expect(legend).to_be_visible()
    page.context.close()


def test_a_run_at_work_is_renamed_in_place_and_gets_a_star(kept_page, services):
    page = kept_page
    run = services.launcher.start(a_config(run__name="at work", training__max_steps=ENDLESS))
    open_tab(page, "Runs")
    pick_run(page, "at work")
    heading, row = page.locator("#one-run-heading"), page.locator(f"#runs-table tr[data-pick='{run.id}']")
    title, button = heading.locator("h2"), heading.get_by_role("button", name="Rename")
    box = page.get_by_role("textbox", name="Name of the run")

    button.press("Enter")
    expect(box).to_be_focused()
    expect(box).to_have_value("at work")
    box.fill("not this")
    status = heading.locator(".status").inner_text()
    expect(heading.locator(".status")).not_to_have_text(status)  # a poll has drawn the heading again
    expect(box).to_have_value("not this")
    assert barriers(page) == []
    box.press("Escape")
    expect(button).to_be_focused()
    expect(box).to_have_count(0)
    expect(title).to_have_text("at work")
    expect(page.locator("#run-details")).to_be_visible()

    title.click()
    box.fill("Paper: <b>1</b>")
    box.press("Enter")
    expect(title).to_have_text("Paper: <b>1</b>")
    expect(row).to_contain_text(f"Paper: <b>1</b> · {run.id[-4:]}")
    title.click()
    box.fill("second name")
    page.locator("#runs-table td.name", has_text="faq, rank 16").last.click()  # leaving the box cancels
    expect(box).to_have_count(0)
    expect(title).to_contain_text("faq, rank 16")

    row.locator(".star").press("Space")
    expect(row.locator(".star")).to_have_attribute("aria-pressed", "true")
    pick_run(page, "Paper: <b>1</b>")
    star = heading.get_by_role("button", name="Star Paper: <b>1</b>")
    expect(star).to_have_attribute("aria-pressed", "true")
    star.click()
    expect(star).to_have_attribute("aria-pressed", "false")
    expect(row.locator(".star")).to_have_attribute("aria-pressed", "false")
    page.locator("#run-to-train").click()
    expect(page.locator("#run-heading h2")).to_have_text("Paper: <b>1</b>")
    expect(page.locator("#follow-run input")).to_have_value(re.compile("Paper: <b>1</b>"))
    request_stop(run)

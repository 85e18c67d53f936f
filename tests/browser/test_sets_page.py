"""My datasets on the Data tab, in a real browser on fakes: a set of many rows, edits, operations, find and replace."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.workshop.exchange import add_set
from loratory.engine.data.workshop.operations import Edit, Mark
from loratory.engine.data.workshop.sets import find_set, set_names
from tests.browser.chromium import (
    barriers,
    choose_model_and_data,
    fits_its_window,
    let_layout_settle,
    open_page,
    open_tab,
)
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services

pytestmark = pytest.mark.browser
MANY = 100_000


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    services = fake_services(folder / "home")
    for name, rows in (("many", MANY), ("few", 40), ("other", 40)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(1, rows + 1):
                row = {
                    "instruction": f"Question {number}?",
                    "input": "",
                    "output": f"Answer {number}. " * (1 + number % 9),
                }
                file.write(json.dumps(row) + "\n")
        config = DatasetConfig(source=str(folder / f"{name}.jsonl"))
        add_set(services.home, name, config, author="Ann", require_space=lambda _: None)
    texts = (
        "Tea is steeped in hot water",
        "Bread rests twice",
        "tea is steeped in hot water!",
        "The moon is far",
        "Bread rests twice.",
        "Chains wear out",
    )
    repeats = ({"instruction": "Why?", "output": text} for text in texts)
    (folder / "repeats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in repeats))
    config = DatasetConfig(source=str(folder / "repeats.jsonl"))
    add_set(services.home, "repeats", config, author="Ann", require_space=lambda _: None)
    return services


@pytest.fixture(scope="module")
def address(services):
    with page_of(services) as running:
        yield running


@pytest.fixture
def page(kept_page: Page) -> Page:
    return kept_page


def open_set(page: Page, name: str) -> None:
    open_tab(page, "Data")
    page.locator(f"#sets [data-pick='open:{name}']").click()
    expect(page.locator("#sets .set h3").first).to_have_text(name)
    expect(page.locator("#sets .line-row").first).to_be_visible()


def row(page: Page, number: int):
    return page.locator("#sets .line-row", has=page.get_by_text(f"{number:,}", exact=True)).first


def test_a_hundred_thousand_rows_scroll_to_their_end(page):
    open_set(page, "many")
    expect(page.locator("#sets .count")).to_contain_text("100,000 of 100,000 rows")
    grid = page.locator("#sets .grid")

    grid.evaluate("grid => { grid.scrollTop = grid.scrollHeight; }")
    expect(row(page, MANY)).to_be_in_viewport()
    assert page.locator("#sets .line-row").count() < 60
    page.locator("#sets .head [data-pick='sort:characters']").click()
    expect(page.locator("#sets .head [aria-sort=ascending]")).to_contain_text("Characters")
    page.locator("#sets .find").fill("answer 777. ")
    expect(page.locator("#sets .count")).to_contain_text("1 of 100,000 rows")
    expect(row(page, 777)).to_contain_text("Question 777?")


def test_rows_are_excluded_by_keyboard_and_come_back(page, services):
    open_set(page, "few")
    expect(page.locator("#sets .count")).to_contain_text("40 of 40 rows")  # no row is chosen among those to come
    grid = page.locator("#sets .grid")
    grid.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    expect(page.locator("#sets .count")).to_contain_text("2 selected")
    page.keyboard.press("e")

    expect(row(page, 3)).to_contain_text("excluded")
    assert find_set(services.home, "few").entries[-1].operation == Mark(kind="exclude", rows="2-3")
    page.locator("#sets .log summary").click()
    page.locator("#sets [data-pick='undo:1']").click()
    expect(row(page, 3)).to_contain_text("kept")
    expect(page.locator("#sets .log")).to_contain_text("undone")


def test_an_edit_shows_its_tokens_and_is_saved(page, services):
    choose_model_and_data(page)
    open_set(page, "few")
    row(page, 5).locator("span").nth(2).click()
    expect(page.locator("#sets .row-editor h3")).to_have_text("Row 5")
    box = page.locator("#sets .fields label", has_text="instruction").locator("textarea")
    box.fill("Why?")

    expect(page.locator("#sets .trained .tokens .trained").first).to_contain_text("Why?")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#sets .said")).to_contain_text("Saved row 5")
    expect(row(page, 5)).to_contain_text("Why?")
    operation = find_set(services.home, "few").entries[-1].operation
    assert isinstance(operation, Edit)
    assert operation.record["instruction"] == "Why?"
    expect(page.locator("#sets .save")).to_be_disabled()


def test_what_is_typed_stays_when_another_page_changed_the_row(page, services):
    open_set(page, "other")
    row(page, 2).locator("span").nth(2).click()
    box = page.locator("#sets .fields label", has_text="output").locator("textarea")
    box.fill("Mine")
    find_set(services.home, "other").append([Mark(kind="exclude", rows="2")], since=None, author="Ben")

    page.locator("#sets .save").click()
    expect(page.locator("#sets .said")).to_contain_text("operation 1 (exclude, by Ben) came in between")
    expect(box).to_have_value("Mine")
    page.locator("#sets [data-pick='turn:1']").click()
    expect(page.locator("#sets .said")).to_contain_text("save or discard them first")
    page.locator("#sets [data-pick=discard]").click()
    expect(box).not_to_have_value("Mine")


def test_a_replacement_is_seen_before_it_is_made(page, services):
    open_set(page, "other")
    page.locator("#sets summary", has_text="Find and replace").click()
    page.get_by_label("Find", exact=True).last.fill("Answer 3. ")
    page.get_by_label("Replace with").fill("Reply. ")
    expect(page.locator("#sets [data-pick=replace]")).to_be_disabled()
    page.locator("#sets [data-pick=preview]").click()
    expect(page.locator("#sets .hits")).to_contain_text("Changes 1 row")
    expect(page.locator("#sets .hits ins")).to_contain_text("Reply.")
    fits_its_window(page)
    assert barriers(page) == []

    page.locator("#sets [data-pick=replace]").click()
    expect(row(page, 3)).to_contain_text("Reply. Reply.")
    assert find_set(services.home, "other").entries[-1].operation.kind == "replace"


def test_a_set_is_made_of_the_open_file_used_and_deleted(page, services):
    choose_model_and_data(page)
    page.locator("#sets [data-pick=make]").click()
    expect(page.locator("#sets .set h3").first).to_have_text("loratory-faq")
    expect(page.locator("#dataset-summary")).to_contain_text("set:loratory-faq")
    expect(page.locator("#sets tr.chosen")).to_contain_text("loratory-faq")

    page.locator("#sets [data-pick='delete:loratory-faq']").click()
    expect(page.locator("#sets .said")).to_contain_text("all of its versions is deleted")
    page.locator("#sets [data-pick='really-delete:loratory-faq']").click()
    expect(page.locator("#sets .said")).to_contain_text("Deleted loratory-faq")
    assert "loratory-faq" not in set_names(services.home)


def test_a_phone_has_the_sets_in_one_column(browser, address):
    page = open_page(browser, address, width=390, height=844)
    open_set(page, "few")
    fits_its_window(page)
    assert barriers(page) == []
    page.context.close()


def test_rows_that_a_check_found_are_shown_excluded_and_brought_back(page, services):
    open_set(page, "repeats")
    page.locator("#sets summary", has_text="Row checks").click()
    expect(page.get_by_label("Similarity from")).to_have_value("0.3")
    page.get_by_label("Similarity from").fill("0.6")
    page.get_by_role("button", name="Check rows").click()
    line = page.locator("#sets .found tr", has_text="Rows that equal an earlier row")
    expect(line).to_contain_text("2 exact")
    expect(line).to_contain_text("Row 3 Equals row 1")
    expect(page.get_by_label("Similarity from")).to_have_value("0.6")
    assert barriers(page) == []
    fits_its_window(page)

    page.get_by_text("Settings", exact=True).last.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Phone regions").fill("Germany")
    page.locator("#sets .more summary").click()
    page.get_by_role("button", name="Check rows").click()
    expect(
        page.get_by_label("Phone regions")
    ).to_be_focused()  # in the fold that was closed, with what the browser says
    page.get_by_label("Phone regions").fill("IN,BR")
    phrases = page.get_by_label("Phrases of refusals")
    expect(phrases).to_have_value(re.compile("refusal: i cannot help with"))
    phrases.fill("vague: far")
    assert barriers(page) == []
    fits_its_window(page)
    page.get_by_role("button", name="Check rows").click()
    expect(page.locator("#sets .found tr", has_text="begin with a refusal")).to_contain_text("1 vague")
    page.get_by_role("button", name="Defaults").click()
    expect(phrases).to_have_value(re.compile("refusal: i cannot help with"))
    expect(page.get_by_label("Phone regions")).to_have_value("US,GB,DE,FR")

    line.get_by_role("button", name="Show: duplicates").click()
    expect(page.locator("#sets .count")).to_contain_text("2 of 6 rows")
    expect(page.locator("#sets .state")).to_have_value("check:duplicates")
    line.get_by_role("button", name="Exclude all").click()
    expect(row(page, 3)).to_contain_text("excluded")
    expect(line.get_by_role("button", name="Exclude all")).to_have_count(0)
    assert find_set(services.home, "repeats").entries[-1].operation == Mark(kind="drop", rows="3,5", text="duplicates")
    page.locator("#sets .log").evaluate("log => { log.open = true; }")  # or is, after another test
    page.locator("#sets [data-pick='undo:1']").click()
    expect(row(page, 3)).to_contain_text("kept")
    expect(line.get_by_role("button", name="Exclude all")).to_have_text("Exclude all (2)")
    with page.expect_download() as download:
        page.get_by_role("button", name="Markdown").click()
    assert download.value.suggested_filename == "repeats-checks.md"
    assert "## duplicates: 2 exact" in download.value.path().read_text()


def test_answers_get_a_score_by_which_rows_are_sorted_and_excluded(page, services):
    open_set(page, "other")
    expect(page.locator("#sets .head .score")).to_be_hidden()
    page.locator("#sets .checks").evaluate("checks => { checks.open = true; }")  # or is, after another test
    page.locator("#sets summary", has_text="Scorers of the answers").click()
    page.locator("#sets .scorers .add").select_option("length")
    page.locator("#sets .scorers").get_by_label("At least").fill("6")
    page.locator("#sets .scorers .add").select_option("contains")
    page.get_by_label("Remove Contains, scorer 2").click()
    expect(page.locator("#sets .scorers fieldset")).to_have_count(1)
    expect(page.locator("#sets .scorers").get_by_label("At least")).to_have_value("6")
    page.get_by_label("Score below").fill("0.9")
    page.get_by_role("button", name="Check rows").click()
    line = page.locator("#sets .found tr", has_text="Answers that the scorers of the dataset")
    expect(line).to_contain_text("below 0.9")
    expect(page.locator("#sets .line-row .score").first).to_have_text("0.00")
    assert barriers(page) == []
    fits_its_window(page)

    page.locator("#sets .head .score button").click(click_count=2, delay=50)
    expect(page.locator("#sets .line-row .score").first).to_have_text("1.00")
    page.locator("#sets .head .score button").click()
    expect(page.locator("#sets .line-row .score").first).to_have_text("0.00")
    line.get_by_role("button", name="Exclude all").click()
    expect(page.locator("#sets .line-row.excluded").first).to_be_visible()
    kinds = [entry.operation.kind for entry in find_set(services.home, "other").entries]
    assert kinds[-1] == "drop"
    page.locator("#sets .log").evaluate("log => { log.open = true; }")
    page.locator(f"#sets [data-pick='undo:{len(kinds)}']").click()
    expect(page.locator("#sets .line-row.excluded")).to_have_count(0)


def test_a_set_is_renamed_in_place_and_the_draft_follows(page, services):
    open_tab(page, "Data")
    page.locator("#sets tr[data-pick='set:other']").click()
    expect(page.locator("#dataset-summary")).to_contain_text("set:other")
    open_set(page, "other")
    page.locator("#sets [data-pick=rename]").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("few")
    page.keyboard.press("Enter")
    expect(page.locator("#sets .said")).to_contain_text("few is the name of a set")
    page.locator("#sets [data-pick=rename]").click()
    page.keyboard.press("Escape")
    expect(page.locator("#sets .set h3").first).to_have_text("other")
    page.locator("#sets [data-pick=rename]").click()
    page.keyboard.type("another")
    page.keyboard.press("Enter")

    expect(page.locator("#sets .set h3").first).to_have_text("another")
    expect(page.locator("#sets [data-pick=rename]")).to_be_focused()
    expect(page.locator("#dataset-summary")).to_contain_text("set:another")
    expect(page.locator("#sets tr.chosen")).to_contain_text("another")
    assert find_set(services.home, "other").name == "another"
    row(page, 1).locator("span").first.click()
    page.keyboard.press("e")
    expect(row(page, 1)).to_contain_text("excluded")


def test_versions_are_compared_seen_and_trained_on(page, services):
    dataset = find_set(services.home, "few")
    dataset.append(
        [Edit(kind="edit", row=5, record={"instruction": "<b>New</b>?", "output": "x"})], since=None, author="Ben"
    )
    dataset.append([Mark(kind="exclude", rows="7")], since=None, author="Ben")
    before, after = find_set(services.home, "few").versions[-3].name, find_set(services.home, "few").versions[-1].name
    open_set(page, "few")
    page.locator("#sets .log").evaluate("log => { log.open = true; }")
    page.locator(f"#sets [data-pick='compare:{before}']").first.click()

    expect(page.locator("#sets .changes")).to_contain_text("2 rows differ: 1 changed, 1 gone.")
    expect(page.locator("#sets .changes ins")).to_have_text("<b>New</b>?")
    expect(page.locator("#sets .changes del").last).to_contain_text("Question 7?")
    assert barriers(page) == []
    page.locator(f"#sets [data-pick='rows-of:{before}']").first.click()
    expect(row(page, 7)).to_contain_text("kept")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("e")
    expect(page.locator("#sets .said")).to_contain_text("An earlier version stays as it is")
    page.locator("#sets [data-pick='rows-of:']").click()
    expect(row(page, 7)).to_contain_text("excluded")
    page.locator(f"#sets [data-pick='set:few@{after}']").click()
    expect(page.locator("#dataset-summary")).to_contain_text(f"set:few@{after}")


def test_a_long_list_is_shown_whole_on_demand(page, services, tmp_path):
    (tmp_path / "row.jsonl").write_text('{"instruction": "Why?", "output": "So."}\n')
    for number in range(7):
        config = DatasetConfig(source=str(tmp_path / "row.jsonl"))
        add_set(services.home, f"z-{number}", config, author="Ann", require_space=lambda _: None)
    count = len(set_names(services.home))
    page.reload()
    open_tab(page, "Data")
    rows = page.locator("#sets table.sets tbody tr")
    expect(rows).to_have_count(5)
    let_layout_settle(page)  # after a reload, the list may be drawn a second time

    page.get_by_role("button", name=f"Show all {count} datasets").press("Enter")

    expect(rows).to_have_count(count)
    expect(rows.nth(5)).to_be_focused()
    expect(page.get_by_role("button", name="Show all")).to_have_count(0)
    assert barriers(page) == []

"""The main road by mouse in a real browser, on fakes: what only a browser can show."""

import csv
import re

import pytest
from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from loratory.ui.services import Services
from tests.browser.chromium import (
    barriers,
    choose_model_and_data,
    fits_its_window,
    let_layout_settle,
    open_model_choice,
    open_page,
    open_tab,
    reload,
    set_up,
)
from tests.fake_launcher import ENDLESS
from tests.fake_services import fake_services, invent_runs
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


_RANGE = "document.querySelector('#loss-chart .chart').layout.xaxis.range"
# What is wider than the window without scrolling by itself, and cells that are cut.
_BEYOND_THE_WINDOW = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => element && (element.matches('.scroll, pre, .tokens') || scrolls(element.parentElement));
  const beyond = (element) => element.offsetParent && element.innerText?.trim() && element.getBoundingClientRect().right > width + 1;
  const found = [...document.querySelectorAll('#header, #work *, #side *')].filter((element) => beyond(element) && !scrolls(element));
  const cards = [...document.querySelectorAll('table.cards td')].filter(beyond);
  return [...found, ...cards].map((element) => element.outerHTML.slice(0, 200));
}"""
# Stands in for what the browser shows outside of the page, as a person who allowed it would have it.
_NOTES_NOTIFICATIONS = """() => {
  window.told = [];
  window.Notification = class { static permission = 'granted'; constructor(title, more) { window.told.push([title, more.body]); } };
  localStorage.setItem('loratory-notify', 'on');
}"""
_LAST_STEP = "document.querySelector('#loss-chart .chart').data[0].x.at(-1)"


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    invent_runs(services.runs)
    return services


def nothing_is_beyond_the_window(page: Page) -> None:
    """Charts find their new width a moment after the window has."""
    try:
        page.wait_for_function(f"() => !({_BEYOND_THE_WINDOW})().length")
    except PlaywrightTimeoutError:
        assert page.evaluate(_BEYOND_THE_WINDOW) == []


def is_not_tall(page: Page) -> None:
    """Wait until a page on which nothing was opened has found its height; what was just drawn may still take its place."""
    page.set_viewport_size({"width": 1366, "height": 860})
    page.wait_for_function("document.documentElement.scrollHeight <= 1600")


def test_a_run_is_set_up_started_followed_and_stopped(page, services, browser, address):
    choose_model_and_data(page)
    open_tab(page, "Train")
    expect(page.get_by_label("Set up", exact=True)).to_be_checked()  # the draft comes first, also while a run waits
    set_up(page)
    page.locator("#max-steps input").fill(str(ENDLESS))
    page.locator("#max-steps input").blur()
    expect(page.locator("#plan")).to_contain_text(f"{ENDLESS:,}")
    before = len(services.runs.ids())

    page.locator("#start").dblclick()

    expect(page.locator("#run-heading")).to_contain_text("running")
    expect(page.locator("#run-heading .progress")).to_be_in_viewport()
    expect(page.locator("#loss-chart .main-svg").first).to_be_visible()
    assert len(services.runs.ids()) == before + 1
    expect(page).to_have_title(re.compile(r"^\d+% · Loratory$"))

    step = page.evaluate(_LAST_STEP)
    page.wait_for_function(f"{_LAST_STEP} > {step}")
    page.evaluate("Plotly.relayout(document.querySelector('#loss-chart .chart'), {'xaxis.range': [1, 5]})")
    step = page.evaluate(_LAST_STEP)
    page.wait_for_function(f"{_LAST_STEP} > {step}")
    assert page.evaluate(_RANGE) == [1, 5]  # zoom survives updates

    other = open_page(browser, address)
    title = page.locator("#run-heading h2").inner_text()
    other.locator("#header").get_by_text("active run").click()
    expect(other.locator("#run-heading h2")).to_have_text(title)
    other.context.close()

    reload(page)
    expect(page.locator("#run-heading h2")).to_have_text(title)
    page.go_back()
    expect(page.locator("#train-setup")).to_be_visible()
    page.go_forward()
    expect(page.locator("#run-heading h2")).to_be_visible()

    page.evaluate(_NOTES_NOTIFICATIONS)
    page.locator("#tab-titles").wait_for(state="attached")  # what ended before the page was opened is not told
    page.locator("#stop").click()
    expect(page.locator("#run-heading")).to_contain_text("stopped")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page).to_have_title("Stopped · Loratory")
    page.wait_for_function("window.told.length > 0")
    assert page.evaluate("window.told") == [[title, "Stopped"]]

    page.locator("#train-view label", has_text="Set up").click()
    page.locator("#start").click()
    expect(page.locator("#confirm-start")).to_contain_text("Start again?")
    expect(page.locator("#really-start")).to_be_in_viewport()
    assert barriers(page) == []
    page.locator("#do-not-start").press("Enter")
    expect(page.locator("#confirm-start")).to_be_hidden()
    assert len(services.runs.ids()) == before + 1
    page.locator("#train-view label", has_text="Follow").click()
    page.locator("#next-step-run .go:visible").click()
    expect(page.locator("#chat-run input")).to_have_value(re.compile("stopped"))
    expect(page.locator("#side")).to_be_hidden()


def test_curves_follow_the_theme_without_asking_the_server(kept_page):
    page = kept_page
    open_tab(page, "Runs")
    page.locator("#runs-table tr", has_text="faq, rank 16").last.locator("td.name").click()
    page.locator("#run-to-train").click()
    expect(page.locator("#loss-chart .main-svg").first).to_be_visible()
    colour = "document.querySelector('#loss-chart .chart').data[1].line.color"
    light = page.evaluate(colour)

    page.evaluate("document.body.classList.add('dark')")

    page.wait_for_function(f"{colour} !== '{light}'")
    assert page.evaluate(colour).lower() == "#56b4e9"
    page.evaluate("document.body.classList.remove('dark')")


def test_a_chart_has_several_x_axes_and_is_saved_as_picture_and_table(kept_page):
    page = kept_page
    open_tab(page, "Runs")
    page.locator("#runs-table tr", has_text="faq, rank 16").last.locator("td.name").click()
    page.locator("#run-to-train").click()
    chart = page.locator("#loss-chart")
    expect(chart.locator(".main-svg").first).to_be_visible()
    curve = "document.querySelector('#loss-chart .chart').data[0]"
    steps, losses = page.evaluate(f"[{curve}.x, {curve}.y]")

    chart.get_by_label("x axis").select_option("tokens seen")
    page.wait_for_function(f"{curve}.x[1] === 1080")
    assert page.evaluate(f"{curve}.y") == losses
    assert page.evaluate(f"{curve}.customdata[1]").startswith("step 2, epoch 0.05, ")

    saved = {}
    for kind in ("PNG", "SVG", "CSV"):
        with page.expect_download() as download:
            chart.get_by_role("button", name=kind).click()
        assert download.value.suggested_filename == f"faq-rank-16-loss-chart.{kind.lower()}"
        saved[kind] = download.value.path().read_bytes()
    assert saved["PNG"].startswith(b"\x89PNG")
    assert b"train, smoothed" in saved["SVG"]
    rows = list(csv.DictReader(saved["CSV"].decode().splitlines()))
    raw = [row for row in rows if row["series"] == "train, each step"]
    assert [float(row["step"]) for row in raw] == steps
    assert [float(row["value"]) for row in raw] == losses
    assert float(raw[1]["tokens seen"]) == 1080
    assert "checkpoint, 41.0 MB" in {row["note"] for row in rows}
    expect(page.locator("#small-charts").get_by_label("x axis")).to_be_hidden()  # of a single axis
    chart.get_by_label("x axis").select_option("step")


def test_base_and_tuned_answer_side_by_side_and_can_be_stopped(kept_page, services):
    page = kept_page
    open_tab(page, "Chat")
    open_model_choice(page)
    page.locator("#chat-load").click()
    expect(page.locator("#chat-state")).to_contain_text("is loaded")
    page.locator("#suggestions .suggested button").first.click()
    question = page.locator("#chat-question textarea")
    expect(question).to_have_value(re.compile(r".+\?"))
    question.press("Enter")

    answers = page.locator("#transcript .answer:not(.reference)")
    expect(answers).to_have_count(2)
    expect(answers.nth(1)).to_contain_text("It scales the adapter's update")
    expect(answers.nth(0)).to_contain_text("stop token")
    assert page.locator("#transcript i").count() == 0  # markup in an answer is text
    expect(page.locator("#chat-stop")).to_be_hidden()
    assert barriers(page) == []
    assert page.locator("#transcript").bounding_box()["y"] < 400
    page.set_viewport_size({"width": 1280, "height": 500})
    expect(page.locator("#transcript .question")).to_be_in_viewport()
    expect(page.locator("#chat-send")).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 1280, "height": 900})

    services.chat.may_answer.clear()  # it still answers when the stop is clicked
    question.fill("And again?")
    page.locator("#chat-send").click()
    wait_until(lambda: services.chat.requests[-1].messages[-1].content == "And again?")  # what is asked can be stopped
    page.locator("#chat-stop").click()
    expect(page.locator("#transcript .answers").last).to_contain_text("stopped")
    services.chat.may_answer.set()

    page.locator("#prompt-sets > button").click()
    page.get_by_label("Name of a new set").fill("colours")
    page.get_by_label("Prompts, one per line").fill("Is it red?\nIs it blue?")
    page.locator("#prompt-set-list button", has_text="Save prompts").press("Enter")
    expect(page.locator("#prompt-set-list [role=status]")).to_have_text("colours is saved with 2 prompts.")
    assert barriers(page) == []
    page.locator("#prompt-set-list button", has_text="Ask all of colours").press("Enter")
    expect(page.locator("#transcript .answers").nth(3)).to_contain_text("stop token")
    assert services.chat.requests[-1].messages[-1].content == "Is it blue?"
    expect(page.locator("#chat-stop")).to_be_hidden()
    page.locator("#prompt-set-list summary", has_text="Delete colours").press("Enter")
    page.locator("#prompt-set-list button", has_text="Delete permanently").press("Enter")
    expect(page.locator("#prompt-set-list li")).to_have_count(0)
    page.locator("#prompt-sets > button").click()
    page.locator("#chat-model-fold > button").click()
    page.locator("#chat-unload").click()
    expect(page.locator("#chat-state")).to_contain_text("No model loaded")


def test_a_row_that_stands_out_shows_the_losses_of_its_tokens(kept_page):
    page = kept_page
    open_tab(page, "Chat")
    page.locator("#chat-mode label", has_text="Measure").click()
    result = page.locator("#measure-result")
    result.get_by_role("button", name="the run's dataset").click()
    rows = result.locator("table", has_text="Still failing").locator("tr[data-pick]")
    expect(rows).to_have_count(1)

    rows.first.focus()
    page.keyboard.press("Enter")

    boxes = result.locator("div.losses")
    expect(boxes).to_have_count(2)
    expect(result.locator(".row-tokens h3")).to_have_text(["Row 12, Base model", "Row 12, Tuned model"])
    expect(boxes.first.locator("i")).to_have_text(["It", " <i>", "·", "é"])
    expect(boxes.first.locator("i").nth(1)).to_have_attribute("title", "loss 2.00")
    levels = [token.get_attribute("class") for token in boxes.first.locator("i").all()]
    assert levels == ["loss-0", "loss-2", "loss-2", "loss-4"]
    expect(result.locator("p.losses i")).to_have_text(["over 90%", "50 to 90%", "10 to 50%", "1 to 10%", "under 1%"])
    number = "token => getComputedStyle(token, '::after').content"
    assert boxes.first.locator("i").last.evaluate(number) == "none"
    boxes.first.focus()
    assert boxes.first.locator("i").last.evaluate(number) == '"5.25"'
    assert barriers(page) == []
    page.set_viewport_size({"width": 390, "height": 800})
    nothing_is_beyond_the_window(page)
    result.locator("table", has_text="Likeliest").locator("tr[data-pick]").click()
    expect(result.locator(".row-tokens h3").first).to_have_text("Row 4, Base model")
    expect(boxes).to_have_count(2)
    page.set_viewport_size({"width": 1366, "height": 860})
    page.locator("#chat-mode label", has_text="Chat").click()  # for the tests after this one


def test_long_answers_fold_and_keys_vote_one_press_a_pair(kept_page, services, monkeypatch):
    lines = "\n".join(f"- Point {number}, of a long answer" for number in range(40))
    monkeypatch.setattr("tests.fake_chat._ANSWERS", {"base": lines, "tuned": "Short."})
    page = kept_page
    page.set_viewport_size({"width": 1366, "height": 860})
    open_tab(page, "Chat")
    open_model_choice(page)
    page.locator("#chat-load").click()
    expect(page.locator("#chat-state")).to_contain_text("is loaded")
    expect(page.locator("#chat-model-fold > button")).to_contain_text("Change")
    bar = page.locator("#next-step").bounding_box()["y"]
    composer = page.locator("#composer").bounding_box()
    assert bar - 24 < composer["y"] + composer["height"] <= bar + 1, "right above the bar"
    page.locator("#chat-question textarea").fill("A long one?")
    page.locator("#chat-send").click()

    more, jump = page.locator("#transcript .more:visible"), page.locator("#transcript .jump")
    expect(more).to_have_count(1)
    expect(page.locator("#transcript .answer.cut")).to_contain_text("Point 39")
    assert page.locator("#transcript .answer.cut .text").bounding_box()["height"] < 300
    expect(jump).to_be_hidden()
    more.click()
    expect(more).to_have_count(0)
    page.mouse.wheel(0, -2000)
    jump.click()
    expect(page.locator("#transcript .answers").last.locator(".figures").first).to_be_in_viewport()
    expect(jump).to_be_hidden()
    # As a scroll bar or the Tab key scrolls: what is drawn then does not scroll back.
    scroll_and_draw = (
        "window.scrollTo(0, 0); document.getElementById('transcript').append(document.createElement('span'))"
    )
    page.evaluate(scroll_and_draw)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("window.scrollY") == 0
    assert barriers(page) == []

    page.locator("#chat-mode label", has_text="Blind test").click()
    page.locator("#blind-next").click()
    verdicts = page.locator("#blind-verdict")
    for count, key in enumerate(("1", "0", "2"), 1):
        expect(verdicts).to_be_in_viewport(ratio=1)
        expect(page.locator("#blind-pair .question")).to_be_in_viewport(ratio=1)
        for answer in page.locator("#blind-pair .answer").all():
            expect(answer).to_be_in_viewport(ratio=1)
        page.keyboard.press(key)
        expect(page.locator("#blind-tally")).to_contain_text(f"{count} pair")
    expect(verdicts).to_be_visible()
    assert barriers(page) == []
    page.locator("#blind-source label", has_text="My own").click()
    page.locator("#blind-question textarea").press("1")  # types
    expect(page.locator("#blind-question textarea")).to_have_value("1")
    expect(page.locator("#blind-tally")).to_contain_text("3 pairs")
    page.locator("#chat-mode label").first.click()
    expect(page.locator("#transcript")).to_be_visible()  # the mode has closed the fold by then
    page.locator("#chat-model-fold > button").click()
    page.locator("#chat-unload").click()
    expect(page.locator("#chat-state")).to_contain_text("No model loaded")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_slider_moves_the_answers_and_a_line_in_the_chart(kept_page):
    page = kept_page
    open_tab(page, "Runs")
    page.locator("#runs-table tr", has_text="faq, rank 16").last.locator("td.name").click()
    page.locator("#run-to-train").click()
    strip = page.locator("#run-answers")
    slider = strip.get_by_role("slider", name="Evaluation")
    line = "document.querySelector('#loss-chart .chart').layout.shapes?.[0]?.x0"
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^Step 120, held-out loss"))
    expect(strip.locator(".tuned .text").first).to_have_text("the rank of the two small matrices", use_inner_text=True)
    page.wait_for_function(f"{line} === 120")

    slider.focus()
    page.keyboard.press("Home")

    expect(slider).to_have_attribute("aria-valuetext", re.compile("^Step 0, held-out loss"))
    expect(strip.locator(".tuned .text").first).to_have_text("a letter", use_inner_text=True)
    page.wait_for_function(f"{line} === 0")
    page.keyboard.press("ArrowRight")
    expect(strip.locator(".tuned .text mark:visible")).to_have_text("the")
    page.wait_for_function(f"{line} === 12")
    page.evaluate(
        "window.loratoryPlaces['run-answers'](document.querySelector('#run-answers [data-steps]').outerHTML + ' ')"
    )
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^Step 12, held-out loss"))  # kept as answers arrive
    assert barriers(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    nothing_is_beyond_the_window(page)
    boxes = strip.locator("section section").first.locator(".answer")
    lefts = {boxes.nth(number).bounding_box()["x"] for number in range(3)}
    assert len(lefts) == 1  # one column
    page.set_viewport_size({"width": 1280, "height": 900})
    open_tab(page, "Runs")
    page.locator("#run-close").click()
    expect(page.locator("#run-details")).to_be_hidden()


def test_runs_are_compared_copied_and_deleted_by_keyboard_and_mouse(kept_page, services):
    page = kept_page
    open_tab(page, "Runs")
    rows = page.locator("#runs-table tr[data-pick]")
    expect(rows.first).to_be_visible()
    ticks = page.locator("#runs-table tbody .tick")
    ticks.last.focus()
    ticks.last.press("Space")
    expect(ticks.last).to_have_attribute("aria-checked", "true")
    page.locator("#runs-table tr", has_text="Qwen3-0.6B · LoRA").first.locator(".tick").click()
    expect(page.locator("#overlay-chart .main-svg").first).to_be_visible()
    expect(page.locator("#differences")).to_contain_text("adapter.r")
    title = "document.querySelector('#overlay-chart .chart').layout.xaxis.title.text"
    for axis in ("tokens seen", "minutes of training", "step"):
        page.locator("#overlay-chart").get_by_label("x axis").select_option(axis)
        page.wait_for_function(f"{title} === '{axis}'")
    with page.expect_download() as download:
        page.locator("#runs-csv").click()
    assert download.value.path().read_text(encoding="utf-8").count("\n") == len(services.runs.ids()) + 1
    page.set_viewport_size({"width": 390, "height": 844})
    let_layout_settle(page)
    assert barriers(page) == []  # a table that scrolls can be reached
    page.set_viewport_size({"width": 1280, "height": 900})

    rows.last.locator("td.name").click()
    expect(page.locator("#run-details h2")).to_have_text("first try, full length")
    page.keyboard.press("Escape")
    ticks.first.click()
    expect(ticks.first).to_have_attribute("aria-checked", "true")
    expect(page.locator("#run-details")).to_be_hidden()
    rows.last.locator("td.name").click()
    expect(page.locator("#run-details h2")).to_have_text("first try, full length")
    before = len(services.runs.ids())
    page.locator("#run-delete").click()
    expect(page.locator("#confirm-delete")).to_contain_text("cannot be undone")
    page.locator("#really-delete").click()
    expect(page.locator("#run-details")).to_be_hidden()
    assert len(services.runs.ids()) == before - 1

    page.locator("#runs-table tr", has_text="Qwen3-0.6B · LoRA").first.locator("td.name").click()
    page.locator("#run-duplicate").click()
    expect(page.locator("#panel")).to_contain_text("Qwen3-0.6B")
    expect(page.locator("#panel")).to_contain_text("r 8")


def test_every_tab_is_open_to_everyone(page, services):
    """No barrier that axe-core knows, in light and dark; one heading on top, names that are labels, keys that work."""
    open_tab(page, "Train")
    expect(page.get_by_label("Follow", exact=True)).to_be_checked()  # a run is under way, which comes first
    page.locator("#train-view label", has_text="Set up").click()
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#start-reason")).to_contain_text("Choose a model. Choose a dataset.")
    open_tab(page, "Model")

    pick = page.locator("#catalog tr[data-pick]")
    pick.nth(1).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(pick.first).to_have_attribute("aria-selected", "true")
    expect(pick.first).to_be_focused()
    expect(page.locator("#catalog tr[tabindex='0']")).to_have_count(1)
    expect(page.locator("#model-details .facts")).to_be_visible()
    assert barriers(page) == []

    page.locator("#judge-for input").focus()
    expect(page.locator("[role=listbox]")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("[role=listbox]")).to_have_count(0)  # Gradio's opens again for the Tab

    page.get_by_role("tab", name="Model").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Data")).to_be_focused()
    page.locator("#samples [data-pick]").first.press("Space")
    expect(page.locator("#facts .facts")).to_be_visible()
    assert barriers(page) == []
    page.locator("#samples [data-pick='sample:loratory-preferences']").click()
    expect(page.locator("#row-shown .pair .rejected .differs")).to_be_visible()
    expect(page.locator("#lengths details").last).to_be_visible()
    is_not_tall(page)
    page.locator("#lengths summary").first.click()
    expect(page.locator("#lengths svg.differences")).to_be_visible()
    assert barriers(page) == []

    open_tab(page, "Method")
    expect(page.locator("#method-table [data-pick]").first).to_be_visible()
    assert barriers(page) == []

    open_tab(page, "Train")
    expect(page.locator("#plan .facts")).to_be_visible()
    expect(page.get_by_role("textbox", name="Name", exact=True)).to_have_accessible_description(re.compile("Run name"))
    expect(page.locator("#objective input:checked")).to_have_value("dpo")
    page.locator("#presets").get_by_text("Preferences on a CPU").click()
    expect(page.locator("#applied .notice")).to_contain_text("has not been trained here yet")
    is_not_tall(page)
    page.locator("#objective-settings button").first.click()
    expect(page.locator("#loss-type input").first).to_be_visible()
    assert barriers(page) == []

    page.locator("#train-view label", has_text="Follow").click()
    expect(page.locator("#run-heading h2")).to_be_visible()
    assert barriers(page) == []
    for width in (683, 390):  # 1366 pixels at 200%, and a telephone
        page.set_viewport_size({"width": width, "height": 800})
        expect(page.get_by_role("tab")).to_have_count(7)  # none in a menu
        nothing_is_beyond_the_window(page)

    open_tab(page, "Chat")
    expect(page.locator("#chat-load")).to_be_enabled()
    fits_its_window(page)
    assert barriers(page) == []

    open_tab(page, "Export")
    expect(page.locator("#export-start")).to_be_enabled()
    fits_its_window(page)
    assert barriers(page) == []

    open_tab(page, "Runs")
    page.locator("#runs-table td.name").first.click()
    expect(page.locator("#run-details h2")).to_be_visible()
    page.locator("#runs-table tbody .tick").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#runs-table tbody .tick").nth(1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#runs-table tr[data-pick]").nth(1)).to_be_focused()
    nothing_is_beyond_the_window(page)  # rows are cards
    assert barriers(page) == []
    assert page.locator("h1").count() == page.locator("main").count() == page.get_by_role("banner").count() == 1

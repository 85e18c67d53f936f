"""Charts of a run in a real browser, on fakes: their colours, axes, files and marks; losses of tokens."""

import csv
import re

import pytest
from playwright.sync_api import expect

from loratory.ui.services import Services
from tests.browser.chromium import (
    barriers,
    nothing_is_beyond_the_window,
    open_tab,
)
from tests.fake_services import fake_services, invent_runs

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    invent_runs(services.runs)
    return services


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

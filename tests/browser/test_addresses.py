"""The address of each tab and run: shown, opened again, and what a page does without one; and the bar that leads on."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from loratory.engine.evaluation.blind_test import judgements_file
from loratory.engine.evaluation.job import evaluation_file
from loratory.engine.export.contract import records_file
from loratory.engine.runs.run import Run
from loratory.ui.services import Services
from tests.browser.chromium import await_draft, barriers, open_tab, set_up
from tests.browser.conftest import watched_page
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    return fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.05)


@pytest.fixture(scope="module")
def run(services) -> Run:
    return write_run(services.runs, a_config(run__name="faq, rank 8", adapter__r=8), InventedRun())


@pytest.fixture(scope="module")
def other_run(services) -> Run:
    return write_run(services.runs, a_config(run__name="faq, rank 4", adapter__r=4), InventedRun())


def is_at(page: Page, path: str, tab: str) -> None:
    """Wait for an address and its tab."""
    expect(page.locator("#tabs button[role=tab].selected")).to_have_text(tab)
    expect(page).to_have_url(re.compile(rf"://[^/]+{path}(\?.*)?$"))


def go_to(page: Page, address: str, path: str) -> None:
    page.goto(f"{address.rstrip('/')}{path}")
    await_draft(page)


def test_an_address_shows_the_same_in_another_browser_and_after_back_and_forward(
    page, browser: Browser, address, run, other_run
):
    open_tab(page, "Data")
    page.locator("#samples [data-pick='sample:lab-chats']").click()
    is_at(page, "/data/lab-chats", "Data")
    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick]", has_text="faq, rank 8").locator("td.name").last.click()
    is_at(page, f"/runs/{run.id}", "Runs")
    page.locator("#run-to-train").click()
    is_at(page, f"/train/{run.id}", "Train")
    open_tab(page, "Export")
    is_at(page, f"/export/{run.id}", "Export")

    for path, tab in (
        (f"/train/{run.id}", "Train"),
        (f"/runs/{run.id}", "Runs"),
        ("/runs", "Runs"),
        ("/data/lab-chats", "Data"),
    ):
        page.go_back()
        is_at(page, path, tab)
    for path, tab in (("/runs", "Runs"), (f"/runs/{run.id}", "Runs"), (f"/train/{run.id}", "Train")):
        page.go_forward()
        is_at(page, path, tab)
    expect(page.locator("#run-heading h2")).to_have_text("faq, rank 8")

    with watched_page(browser, address) as other:
        for path, tab, part in (
            (f"/runs/{run.id}", "Runs", "#one-run-heading"), (f"/train/{run.id}", "Train", "#run-heading"),
            (f"/train/{other_run.id}", "Train", "#run-heading"), (f"/chat/{run.id}", "Chat", "#next-step-run"), ("/data/lab-chats", "Data", "#dataset-summary"),
        ):  # fmt: skip
            go_to(other, address, path)
            is_at(other, path, tab)
            name = "lab-chats" if tab == "Data" else "rank 4" if other_run.id in path else "rank 8"
            expect(other.locator(part)).to_contain_text(name)


def test_a_run_that_is_not_there_is_reported_and_nothing_else_changes(browser: Browser, address, run):
    page = browser.new_context().new_page()
    go_to(page, address, "/runs/20260101-000000-000-abcd")

    expect(page.locator("[data-testid=toast-body]")).to_contain_text("There is no run '20260101-000000-000-abcd' here.")
    is_at(page, "/runs", "Runs")
    page.context.close()


def test_the_bar_alone_leads_from_a_draft_to_an_export(page, browser: Browser, address, services):
    """Each step is offered until it is done, and never where it is in front already."""
    bar, step = page.locator("#next-step"), page.locator("#next-step .go:visible")
    step.click()
    page.locator("#catalog [data-pick]").first.click()
    expect(step).to_have_text("Choose a dataset")
    step.click()
    page.locator("#samples [data-pick]").first.click()
    set_up(page)
    page.locator("#max-steps input").fill("40000")
    page.locator("#max-steps input").blur()
    expect(bar).to_contain_text("40,000 steps")
    page.locator("#next-step-start").click()
    expect(bar).to_contain_text(re.compile(r"\d+% · .* left · loss [\d.]+"))
    run = services.launcher.started[-1]
    is_at(page, f"/train/{run.id}", "Train")
    expect(bar.locator("[data-pick^='follow:']:visible")).to_have_count(0)

    with watched_page(browser, address) as other:
        is_at(other, f"/train/{run.id}", "Train")
        expect(other.locator("#run-heading")).to_be_visible()
        open_tab(other, "Method")
        expect(other.locator("#next-step .active")).to_have_text(re.compile(r"\d+% · .* left · Open"))
        expect(other.locator("#next-step .in-hand")).to_be_hidden()

    open_tab(page, "Runs")
    bar.get_by_role("button", name="Stop and save").click()
    expect(step).to_have_text("Chat")
    assert barriers(page) == []
    step.click()
    page.locator("#chat-question textarea").fill("What does lora_alpha do?")
    expect(bar.locator(".hint:visible")).to_have_text("Load the model, then ask a question.")
    page.locator("#chat-send").click()

    traces = {
        "Blind test": ("#chat-blind", judgements_file(run.folder.path, None)),
        "Measure": ("#measure-start", evaluation_file(run.folder.path, None)),
        "Export": ("#export-form", records_file(run.folder.path)),
    }
    for name, (part, trace) in traces.items():
        expect(step).to_have_text(name)
        step.click()
        expect(page.locator(part)).to_be_visible()
        expect(step).to_have_count(0)
        trace.parent.mkdir(exist_ok=True)
        trace.touch()
    expect(bar.locator(".path li", has_text="✓")).to_have_count(4)
    expect(step).to_have_count(0)

"""The address of each tab and run: shown, opened again, and what a page does without one; and the bar that leads on."""

import re
import threading
import time

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from loratory.engine.runs.run import Run
from loratory.ui.addresses import parse_address
from loratory.ui.services import Services
from tests.browser.chromium import barriers, open_page, open_tab
from tests.browser.conftest import watched_page
from tests.browser.show_fake import page_of
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

    for path, tab, part in (
        (f"/runs/{run.id}", "Runs", "#one-run-heading"), (f"/train/{run.id}", "Train", "#run-heading"),
        (f"/train/{other_run.id}", "Train", "#run-heading"), (f"/chat/{run.id}", "Chat", "#next-step-run"), ("/data/lab-chats", "Data", "#dataset-summary"),
    ):  # fmt: skip
        with watched_page(browser, address, path) as other:
            is_at(other, path, tab)
            name = "lab-chats" if tab == "Data" else "rank 4" if other_run.id in path else "rank 8"
            expect(other.locator(part)).to_contain_text(name)


def test_a_run_that_is_not_there_is_reported_and_nothing_else_changes(browser: Browser, address, run):
    page = open_page(browser, address, "/runs/20260101-000000-000-abcd")

    expect(page.locator("[data-testid=toast-body]")).to_contain_text(
        "Run '20260101-000000-000-abcd' was not found here."
    )
    is_at(page, "/runs", "Runs")
    page.context.close()


def test_what_is_clicked_while_an_address_is_looked_up_opens_afterwards(browser: Browser, tmp_path, monkeypatch):
    lookups = threading.Semaphore(0)

    def slow_parse(pick: str) -> tuple[str, str]:
        if pick.startswith("/"):
            lookups.release()
            time.sleep(2)
        return parse_address(pick)

    monkeypatch.setattr("loratory.ui.build.parse_address", slow_parse)
    services = fake_services(tmp_path)
    write_run(services.runs, a_config(), InventedRun())
    active = write_run(services.runs, a_config(run__name="under way"), InventedRun(state="running", steps=20))
    with page_of(services) as address, watched_page(browser, address) as page:
        lookups.acquire(timeout=60)

        page.locator("#header").get_by_text("1 active run").click()

        is_at(page, f"/train/{active.id}", "Train")
        expect(page.locator("#run-heading h2")).to_have_text("under way")


def press(page: Page, button: Locator) -> None:
    """Press a button by keyboard alone."""
    for _ in range(150):
        if button.evaluate("button => button === document.activeElement"):
            page.keyboard.press("Enter")
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{button} is not reached by 150 tabs")


def test_the_bar_alone_leads_by_keyboard_from_the_first_view_to_an_export(browser: Browser, tmp_path):
    """Its button is the only one that is pressed, but for an early stop and the verdict on a pair."""
    services = fake_services(tmp_path, seconds_per_step=1.0)
    with page_of(services) as address, watched_page(browser, address) as page:
        bar, step = page.locator("#next-step"), page.locator("#next-step .go:visible")
        expect(step).to_have_text("Load quick start")
        press(page, step)
        press(page, page.locator("#next-step-start"))
        expect(bar).to_contain_text(re.compile(r"\d+% · .* left · loss [\d.]+"))
        (run,) = services.runs.list()
        is_at(page, f"/train/{run.id}", "Train")
        expect(step).to_have_count(0)

        with watched_page(browser, address) as other:
            is_at(other, f"/train/{run.id}", "Train")
            expect(other.locator("#run-heading")).to_be_visible()
            open_tab(other, "Method")
            expect(other.locator("#next-step .active")).to_have_text(re.compile(r"\d+% · .* left"))
            expect(other.locator("#next-step .in-hand")).to_be_hidden()

        press(page, bar.get_by_role("button", name="Stop and save"))
        expect(step).to_have_text("Chat")
        assert barriers(page) == []
        press(page, step)
        question = page.locator("#chat-question textarea")
        expect(question).to_be_focused()
        expect(page.locator("#suggestions [data-pick='0']")).to_be_visible()
        expect(step).to_have_text("Ask")
        press(page, step)
        expect(question).not_to_have_value("")
        press(page, step)
        expect(page.locator("#transcript .answers")).to_have_count(1)
        expect(step).to_have_text("Blind test")
        press(page, step)
        expect(step).to_have_text("Judge a pair")
        press(page, step)
        verdict = page.locator("#blind-verdict .verdict").first
        expect(verdict).to_be_visible()
        press(page, step)
        expect(verdict).to_be_focused()
        page.keyboard.press("Enter")
        for name, action in (("Measure", "Measure now"), ("Export", "Export now")):
            expect(step).to_have_text(name)
            press(page, step)
            expect(step).to_have_text(action)
            press(page, step)
        expect(bar.locator(".path li", has_text="✓")).to_have_count(4)
        expect(step).to_have_count(0)

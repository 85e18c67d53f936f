"""The button of a verdict in a real browser: it copies the settings with one change, once, and can be undone."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from loratory.ui.services import Services
from tests.browser.chromium import barriers, open_tab
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]

CURVE = Path(__file__).parents[1] / "runs" / "curves" / "rate_high.jsonl"


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    run = write_run(services.runs, a_config(training__learning_rate=6e-4), InventedRun())
    run.folder.events.write_bytes(CURVE.read_bytes())
    return services


def test_the_button_of_a_verdict_copies_the_settings_with_its_change(page):
    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick]").first.click()
    button = page.locator("#one-run-heading").get_by_role("button", name="Copy settings with learning rate 0.0002")
    expect(button).to_be_visible()
    expect(page.locator("#one-run-memory")).to_contain_text("Evaluating")
    assert barriers(page) == []

    button.focus()
    page.keyboard.press("Enter")

    expect(page.get_by_role("tab", name="Method")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#applied")).to_contain_text("Settings copied")
    expect(page.locator("#panel")).to_contain_text("0.0002")

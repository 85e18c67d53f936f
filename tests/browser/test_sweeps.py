"""A sweep in a real browser, on fakes: planned while it is typed, queued, concluded, and its best settings copied."""

import pytest
from playwright.sync_api import expect

from loratory.ui.services import Services
from tests.browser.chromium import barriers, choose_model_and_data, open_tab, set_up
from tests.fake_services import fake_services

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]

_TRACE = "document.querySelector('#sweep-chart .chart').data?.[0].type"


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    return fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.01)


def test_a_sweep_is_planned_queued_concluded_and_its_best_settings_copied(page, services):
    choose_model_and_data(page)
    open_tab(page, "Train")
    set_up(page)
    page.locator("#max-steps input").fill("10")
    page.locator("#max-steps input").blur()
    page.locator("#sweep-fold > button").click()
    settings, plan = page.locator("#sweep-settings textarea"), page.locator("#sweep-plan")
    settings.fill("learning_rate = 1e-4, 2e-4\nr = 8, many\nseed = 1, 2")
    expect(plan).to_contain_text("many")
    settings.fill("learning_rate = 1e-4, 2e-4\nr = 8, 16\nseed = 1, 2")
    expect(plan).to_contain_text("8 runs,")
    expect(plan).to_contain_text("The largest, learning_rate")
    page.locator("#learning-rate input").fill("7")  # the plan follows the form
    page.locator("#learning-rate input").blur()
    expect(plan).to_contain_text("Each combination")
    page.locator("#learning-rate input").fill("0.0002")
    page.locator("#learning-rate input").blur()
    expect(plan).to_contain_text("8 runs,")
    assert barriers(page) == []

    page.locator("#sweep-start").click()

    sweep = page.locator("#sweep")
    expect(sweep).to_contain_text("8 of 8 runs ended.")
    expect(sweep).to_contain_text("(2 seeds, 95%)")
    expect(sweep.locator("tbody tr")).to_have_count(4)
    page.wait_for_function(f"{_TRACE} === 'heatmap'")
    expect(page.locator("#sweep-chart .main-svg").first).to_be_visible()
    assert barriers(page) == []
    sweep.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#tabs button[role=tab].selected")).to_have_text("Method")
    expect(page.locator("#applied")).to_contain_text("Settings copied")

"""Rewards in a real browser, on fakes: cards are added, changed and removed, tried and started, without a barrier."""

import re

import pytest
from playwright.sync_api import Page, expect

from loratory.ui.services import Services
from tests.browser.chromium import barriers, choose_model_and_data, set_up
from tests.browser.test_page_on_fakes import nothing_is_beyond_the_window
from tests.fake_services import fake_services

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    return fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)


def cards(page: Page) -> list[str]:
    return page.locator("#rewards fieldset legend").all_inner_texts()


def test_scorers_are_added_changed_tried_and_removed(page):
    choose_model_and_data(page)
    set_up(page)
    expect(page.locator("#rewards-part")).to_be_hidden()
    page.locator("#objective label", has_text="GRPO").click()
    expect(page.locator("#rewards")).to_be_visible()
    expect(page.locator("#panel")).to_contain_text("grpo learns from rewards alone")

    page.locator("#rewards .add").select_option("number")
    expect(page.locator("#rewards fieldset")).to_have_count(1)
    page.locator("#rewards .add").select_option("length")
    expect(page.locator("#rewards fieldset")).to_have_count(2)
    weight = page.locator("#rewards fieldset").nth(1).get_by_label("Weight")
    weight.fill("0.5")
    weight.press("Tab")
    expect(page.locator("#applied .notice, #panel .notice, .notice").first).to_contain_text("Rewards")
    expect(page.locator("#panel")).not_to_contain_text("grpo learns from rewards alone")
    assert cards(page) == ["Number", "Length"]
    assert barriers(page) == []

    page.get_by_role("button", name="Try reward").click()
    expect(page.locator("#try-reward-status")).to_contain_text("Can learn")
    expect(page.locator("#try-reward-status")).to_contain_text("groups without a difference")
    expect(page.locator("#try-reward-status details")).to_have_count(4)
    assert barriers(page) == []

    page.get_by_role("button", name="Keep the 2 prompts that were sometimes right").click()
    expect(page.locator("#next-step")).to_contain_text("loratory")
    expect(page.locator("#try-reward")).not_to_contain_text("sometimes right")  # in a set, whose rows were not tried
    expect(page.locator("#panel")).to_contain_text("2 rows")

    page.get_by_label("Remove Number, scorer 1").click()
    expect(page.locator("#rewards fieldset")).to_have_count(1)
    assert cards(page) == ["Length"]
    expect(page.locator("#rewards fieldset").get_by_label("Weight")).to_have_value(re.compile(r"0\.5"))
    expect(page.locator("#try-reward-status")).not_to_contain_text("Can learn")  # other rewards were tried

    for width in (683, 390):
        page.set_viewport_size({"width": width, "height": 800})
        nothing_is_beyond_the_window(page)
    page.emulate_media(color_scheme="dark")
    assert barriers(page) == []


def test_a_wrong_value_is_named_at_the_cards_and_in_the_panel(page):
    choose_model_and_data(page)
    set_up(page)
    page.locator("#objective label", has_text="GRPO").click()
    page.locator("#rewards .add").select_option("regex")
    expect(page.locator("#panel")).to_contain_text("Rewards")
    expect(page.locator("#rewards .field-problem")).not_to_be_empty()
    expect(page.locator("#try-reward")).to_be_hidden()

    page.get_by_role("textbox", name="Pattern").fill(r"\d+")
    page.get_by_role("textbox", name="Pattern").press("Tab")
    expect(page.locator("#try-reward")).to_be_visible()
    assert barriers(page) == []

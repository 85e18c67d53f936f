"""The main road by mouse alone, with the demo model and a real worker: model, data, method, training, chat.

Screenshots of every tab, light and dark, are left in the folder that LORATORY_SCREENSHOTS names.
"""

import json
import os
import re
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import let_layout_settle, open_page, open_tab, reload
from tests.browser.real_server import real_server
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.e2e]

TABS = ("Model", "Data", "Method", "Train", "Chat", "Export", "Runs")
SOME_STEP, SECOND_STEP = (re.compile(rf"[Ss]tep (?:[{first}-9]|[1-9][\d,]+)\b") for first in (1, 2))


@pytest.fixture(scope="module")
def server(demo_home, tmp_path_factory):
    """Start a real server on a new home with the prepared demo model."""
    home = tmp_path_factory.mktemp("main-road")
    (home / "models").symlink_to(demo_home.models)
    with real_server(home, forks=True) as running:
        yield running


def screenshots_of_every_tab(browser: Browser, url: str, state: dict, folder: Path) -> None:
    for theme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, storage_state=state)
        page = context.new_page()
        page.goto(f"{url}?__theme={theme}")
        expect(page.locator("#panel dl")).to_be_visible()
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(1500)  # someone looks at them
            page.screenshot(path=folder / f"{tab.lower()}-{theme}.png", full_page=True)
        context.close()


def test_a_person_chooses_model_data_and_method(server, browser):
    page = open_page(browser, server.url)
    expect(page.locator("#catalog tr[data-pick]").first).to_be_visible()

    # Model: pick it, and its memory appears next to it.
    page.locator("#catalog tr[data-pick='smollm2-135m-instruct']").click()
    expect(page.locator("#model-details")).to_contain_text("LlamaForCausalLM")
    expect(page.locator("#panel .bar")).to_be_visible()

    # Data: pick a sample, page through it, see what is learned.
    page.locator("#next-step-line .go").click()
    page.locator("#samples tr[data-pick='sample:loratory-faq']").click()
    expect(page.locator("#facts")).to_contain_text("354")
    expect(page.locator("#row-shown .trained").first).to_be_visible()
    first = page.locator("#row-shown .tokens").inner_text()
    page.get_by_role("button", name="Next →").click()
    expect(page.locator("#row-shown .tokens")).not_to_have_text(first)

    # Method: figures follow the form.
    open_tab(page, "Method")
    expect(page.locator("#trainable")).to_contain_text("4,884,480")
    before = page.locator("#panel .legend").text_content()
    page.locator("#method-table tr[data-pick='QLoRA']").click()
    expect(page.locator("#panel")).to_contain_text("QLoRA")
    assert page.locator("#panel .legend").text_content() != before
    page.locator("#method-table tr[data-pick='LoRA']").click()
    expect(page.locator("#panel dl")).not_to_contain_text("QLoRA")
    page.context.close()


def test_a_newcomer_trains_with_three_clicks_at_most_and_talks_to_the_result(server, browser):
    url, home, process = server
    opened, clicks = time.monotonic(), 0
    page = open_page(browser, url)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))

    page.locator("#start-here button").click()
    clicks += 1
    expect(page.locator("#next-step-start")).to_be_visible()
    expect(page.locator("#start-here button")).to_have_count(0)
    page.locator("#next-step-start").click()
    clicks += 1
    expect(page.locator("#run-heading")).to_contain_text(SOME_STEP)
    print(f"the first training step after {clicks} clicks and {time.monotonic() - opened:.1f} s")
    assert clicks <= 3
    expect(page.locator("#next-step-run .in-hand")).to_contain_text("Stop and save")

    # A reload does not touch the run, and a second browser shows the same one.
    reload(page)
    expect(page.locator("#panel dl")).to_contain_text("smollm2-135m-instruct")
    open_tab(page, "Train")
    expect(page.locator("#run-heading")).to_contain_text(SECOND_STEP)
    other = open_page(browser, url)
    open_tab(other, "Train")
    expect(other.locator("#run-heading")).to_contain_text(SECOND_STEP)
    assert other.locator("#run-heading h2").inner_text() == page.locator("#run-heading h2").inner_text()
    other.context.close()

    # Stop and save: what was learned so far can be used, and no process is left.
    expect(page.locator("#stop")).to_be_visible()
    page.locator("#stop").click()
    expect(page.locator("#next-step-run .go:visible")).to_have_text("Chat")
    (run,) = (home / "runs").glob("*/*/config.yaml")
    worker = json.loads((run.parent / "process.json").read_text())["pid"]
    wait_until(lambda: not psutil.pid_exists(worker))
    assert (run.parent / "adapter" / "adapter_model.safetensors").is_file()

    # Chat: base and tuned answer side by side.
    page.locator("#next-step-run .go:visible").click()
    expect(page.locator("#chat-question textarea")).to_be_focused()
    page.locator("#chat-settings button").first.click()
    let_layout_settle(page)
    longest = page.locator("#chat-settings").get_by_label("Max new tokens")
    longest.fill("12")  # a model that was hardly trained finds no end
    longest.press("Tab")
    page.locator("#chat-question textarea").fill("What does lora_alpha do?")
    page.locator("#chat-send").click()
    expect(page.locator("#transcript")).to_contain_text("tokens/s")
    expect(page.locator("#chat-send")).to_be_enabled()

    # The page's process has stayed small and never saw torch.
    resident = psutil.Process(process.pid)
    assert resident.memory_info().rss < 300 * 2**20
    assert not [region.path for region in resident.memory_maps() if "libtorch" in region.path]

    for tab in TABS:
        open_tab(page, tab)
    if pictures_folder := os.environ.get("LORATORY_SCREENSHOTS"):
        Path(pictures_folder).mkdir(parents=True, exist_ok=True)
        screenshots_of_every_tab(browser, url, page.context.storage_state(), Path(pictures_folder))
    assert failures == []

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
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import let_fold_settle, open_page, open_tab
from tests.browser.real_server import real_server

pytestmark = [pytest.mark.browser, pytest.mark.e2e]

TABS = ("Model", "Data", "Method", "Train", "Chat", "Export", "Runs")
TRAIN_SECONDS = 400  # generous: a timed test would only measure the machine


@pytest.fixture(scope="module")
def server(demo_home, tmp_path_factory):
    """A real server on a home of its own that borrows the prepared demo model."""
    home = tmp_path_factory.mktemp("main-road")
    (home / "models").symlink_to(demo_home.models)
    with real_server(home) as running:
        yield running


def shown_step(page: Page) -> int:
    found = re.search(r"[Ss]tep ([\d,]+)", page.locator("#run-heading").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def wait_until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.25)


def screenshots_of_every_tab(browser: Browser, url: str, state: dict, folder: Path) -> list[Path]:
    taken = []
    for theme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, storage_state=state)
        page = context.new_page()
        page.goto(f"{url}?__theme={theme}")
        expect(page.locator("#panel dl")).to_be_visible(timeout=30_000)
        for tab in TABS:
            open_tab(page, tab)
            let_fold_settle(page)
            if "LORATORY_SCREENSHOTS" in os.environ:
                page.wait_for_timeout(1500)  # somebody looks at them
            path = folder / f"{tab.lower()}-{theme}.png"
            page.screenshot(path=path, full_page=True)
            taken.append(path)
        context.close()
    return taken


def test_a_person_chooses_model_data_and_method(server, browser):
    page = open_page(browser, server.url)
    expect(page.locator("#catalog tr[data-pick]").first).to_be_visible(timeout=30_000)

    # Model: pick it, and its memory appears beside.
    page.locator("#catalog tr[data-pick='smollm2-135m-instruct']").click()
    expect(page.locator("#model-details")).to_contain_text("LlamaForCausalLM", timeout=60_000)
    expect(page.locator("#panel .bar")).to_be_visible(timeout=20_000)

    # Data: pick a sample, page through it, see what is learned.
    page.locator("#next-step-line .go").click()
    page.locator("#samples tr[data-pick='sample:loratory-faq']").click()
    expect(page.locator("#facts")).to_contain_text("354", timeout=60_000)
    expect(page.locator("#row-shown .trained").first).to_be_visible(timeout=20_000)
    first = page.locator("#row-shown .tokens").inner_text()
    page.get_by_role("button", name="Next →").click()
    expect(page.locator("#row-shown .tokens")).not_to_have_text(first, timeout=20_000)

    # Method: figures follow the form.
    open_tab(page, "Method")
    expect(page.locator("#trainable")).to_contain_text("4,884,480")
    before = page.locator("#panel .legend").inner_text()
    page.locator("#method-table tr[data-pick='QLoRA']").click()
    expect(page.locator("#panel")).to_contain_text("QLoRA", timeout=20_000)
    assert page.locator("#panel .legend").inner_text() != before
    page.locator("#method-table tr[data-pick='LoRA']").click()
    expect(page.locator("#panel dl")).not_to_contain_text("QLoRA", timeout=20_000)
    page.context.close()


def test_a_newcomer_trains_with_three_clicks_at_most_and_talks_to_the_result(server, browser, tmp_path):
    url, home, process = server
    opened, clicks = time.monotonic(), 0
    page = open_page(browser, url)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))

    page.locator("#start-here button").click()
    clicks += 1
    expect(page.locator("#next-step-start")).to_be_visible(timeout=60_000)
    expect(page.locator("#start-here button")).to_have_count(0)
    page.locator("#next-step-start").click()
    clicks += 1
    wait_until(lambda: shown_step(page) >= 1, TRAIN_SECONDS, "no step was shown")
    print(f"the first training step after {clicks} clicks and {time.monotonic() - opened:.1f} s")
    assert clicks <= 3
    expect(page.locator("#next-step-line .go")).to_have_text("Follow", timeout=30_000)

    # A reload does not touch the run, and a second browser shows the same one.
    page.reload()
    expect(page.locator("#panel dl")).to_contain_text("smollm2-135m-instruct", timeout=30_000)
    open_tab(page, "Train")
    wait_until(lambda: shown_step(page) >= 2, 60, "the run is not there after a reload")
    other = open_page(browser, url)
    open_tab(other, "Train")
    wait_until(lambda: shown_step(other) >= 2, 60, "a second browser does not show the run")
    assert other.locator("#run-heading h2").inner_text() == page.locator("#run-heading h2").inner_text()
    other.context.close()

    # Stop and save: what was learned so far can be used, and no process is left.
    expect(page.locator("#stop")).to_be_visible(timeout=30_000)
    page.locator("#stop").click()
    expect(page.locator("#open-chat")).to_be_visible(timeout=120_000)
    (run,) = (home / "runs").glob("*/*/config.yaml")
    worker = json.loads((run.parent / "process.json").read_text())["pid"]
    wait_until(lambda: not psutil.pid_exists(worker), 30, "the worker is still there")
    assert (run.parent / "adapter" / "adapter_model.safetensors").is_file()

    # Chat: base and tuned answer side by side.
    page.locator("#open-chat").click()
    expect(page.locator("#chat-question textarea")).to_be_focused(timeout=120_000)
    page.locator("#chat-settings button").first.click()
    let_fold_settle(page)
    longest = page.locator("#chat-settings").get_by_label("Max new tokens")
    longest.fill("48")  # a model that was hardly trained finds no end
    longest.press("Tab")
    page.locator("#chat-question textarea").fill("What does lora_alpha do?")
    page.locator("#chat-send").click()
    expect(page.locator("#transcript")).to_contain_text("tokens/s", timeout=180_000)
    wait_until(lambda: page.locator("#chat-send").is_enabled(), 180, "the answers did not end")

    # The page's process has stayed small and never saw torch.
    resident = psutil.Process(process.pid)
    assert resident.memory_info().rss < 300 * 2**20
    assert not [mapped.path for mapped in resident.memory_maps() if "libtorch" in mapped.path]

    folder = Path(os.environ.get("LORATORY_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    taken = screenshots_of_every_tab(browser, url, page.context.storage_state(), folder)
    assert len(taken) == 2 * len(TABS)
    assert all(path.stat().st_size > 5_000 for path in taken)
    assert failures == []

"""`python -m tests.browser.readme_pictures HOME`: the pictures of the README, of a real run on a real page.

HOME is a LORATORY_HOME in which `loratory train quickstart-cpu` has completed.
"""

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.real_server import ROOT, real_server

PICTURES = ROOT / ".github" / "pictures"
SETTLE_MILLISECONDS = 1200
PATIENCE_MILLISECONDS = 180_000


def main() -> None:
    """Take the pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    home = parser.parse_args().home
    PICTURES.mkdir(exist_ok=True)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with real_server(home) as server, chromium() as browser:
        page = open_page(browser, server.url, height=960)
        for name, show, height in (("data", show_data, 1400), ("train", show_run, 960), ("chat", show_answers, 960)):
            show(page)
            page.set_viewport_size({"width": 1280, "height": height})
            page.evaluate("window.scrollTo(0, 0)")
            page.wait_for_timeout(SETTLE_MILLISECONDS)
            page.screenshot(path=PICTURES / f"{name}.png")
            print(PICTURES / f"{name}.png")


def show_data(page: Page) -> None:
    """Show a row token by token, with the memory next to it."""
    page.locator("#catalog tr[data-pick='smollm2-135m-instruct']").click()
    expect(page.locator("#panel .bar")).to_be_visible()
    open_tab(page, "Data")
    page.locator("#samples tr[data-pick='sample:loratory-faq']").click()
    expect(page.locator("#row-shown .trained").first).to_be_visible()


def show_run(page: Page) -> None:
    """Show the oldest completed run with its curves."""
    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick]", has_text="loratory-faq").locator("td.name").last.click()
    expect(page.locator("#run-details h2")).to_be_visible()
    page.locator("#run-to-train").click()
    page.locator("#train-view label", has_text="Follow").click()
    expect(page.locator("#small-charts .main-svg").first).to_be_visible()


def show_answers(page: Page) -> None:
    """Show the answers of base and tuned side by side."""
    open_tab(page, "Chat")
    page.locator("#chat-load").click()
    expect(page.locator("#chat-state")).to_contain_text("is loaded")
    page.locator("#chat-question textarea").fill("What does lora_alpha do?")
    page.locator("#chat-send").click()
    expect(page.locator("#transcript .retry")).to_be_visible()


if __name__ == "__main__":
    main()

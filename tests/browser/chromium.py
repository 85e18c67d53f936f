"""The browser of the tests: Debian's Chromium, started so it asks no one for anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

# Debian's Chromium without windows, which takes a quarter less processor time; else the whole one.
_PROGRAMS = (Path("/usr/bin/chromium-headless-shell"), Path("/usr/bin/chromium"))
CHROMIUM = next(filter(Path.exists, _PROGRAMS), _PROGRAMS[-1])
PATIENCE_MS = 300_000  # ends a test that hangs; a busy machine takes many times as long as a quiet one
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def why_no_browser() -> str | None:
    """Return why browser tests cannot run here; None where they can, and always None in CI."""
    if CHROMIUM.exists() or os.environ.get("CI"):
        return None
    return f"{CHROMIUM} is not installed"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not CHROMIUM.exists():
        raise FileNotFoundError(f"{CHROMIUM} is missing; browser tests need Debian's chromium package.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def open_page(
    browser: Browser, address: str, path: str = "/", *, width: int = 1280, height: int = 900, dark: bool = False
) -> Page:
    """Open a page in a new context, once its tabs can be clicked and its form can be filled."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{address.rstrip('/')}{path}?__theme={'dark' if dark else 'light'}")
    await_draft(page)
    return page


def await_draft(page: Page) -> None:
    """Wait until the browser's draft is in the form: it would be put in over what was typed or uploaded before."""
    page.locator("#tabs button[role=tab]").first.wait_for()
    page.locator("#next-step-line .chosen").wait_for(state="attached")  # another line may be in front


def reload(page: Page) -> None:
    """Open a page again, once its form can be filled."""
    page.reload()
    await_draft(page)


def open_tab(page: Page, name: str) -> None:
    """Click a tab and wait until its content is there."""
    page.get_by_role("tab", name=name, exact=True).click()
    page.locator(f"#tabs button[role=tab].selected:has-text('{name}')").wait_for()
    let_layout_settle(page)


def set_up(page: Page) -> None:
    """Open the Train tab with its settings."""
    open_tab(page, "Train")
    page.locator("#train-view label", has_text="Set up").click()
    expect(page.locator("#presets button").first).to_be_visible()
    let_layout_settle(page)


def choose_model_and_data(page: Page) -> None:
    """Take the first model of the catalogue and the first sample."""
    open_tab(page, "Model")
    page.locator("#catalog [data-pick]").first.click()
    expect(page.locator("#model-details .facts")).to_be_visible()
    open_tab(page, "Data")
    page.locator("#samples [data-pick]").first.click()
    expect(page.locator("#facts .facts")).to_be_visible()


def open_model_choice(page: Page) -> None:
    """Open the choice of Chat, which is folded while a model is loaded."""
    page.locator("#chat-load:not([disabled])").wait_for(state="attached")
    if page.locator("#chat-load").is_hidden():
        page.locator("#chat-model-fold > button").click()


def fits_its_window(page: Page) -> None:
    """Wait until nothing makes the page wider than its window; what was just laid out may still be finding its width."""
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def barriers(page: Page) -> list[str]:
    """Return what axe-core finds on a page in light and dark: rule, element and reason."""
    page.emulate_media(reduced_motion="reduce")  # a colour on its way is not the one that stays
    violations = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    was_dark = page.evaluate("document.body.classList.contains('dark')")
    page.emulate_media(color_scheme="dark")
    page.evaluate("document.body.classList.add('dark')")
    violations += Axe().run(page, options={"runOnly": ["color-contrast"]}).response["violations"]
    page.emulate_media(color_scheme="light")
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", was_dark)
    return [f"{rule['id']} {node['target']} {node['failureSummary']}" for rule in violations for node in rule["nodes"]]


def let_layout_settle(page: Page) -> None:
    """Wait until what was typed into a fold or tab stays there.

    When one is opened for the first time, Gradio lays out what is in it and an animation frame later puts the first values
    in again (`render_previously_invisible_children`). No hand is as quick; a test is, and what it typed or chose is gone.
    """
    page.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"
    )

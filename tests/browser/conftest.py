"""One browser for each file of browser tests, and a page of its own for each; where there is none they are skipped with the reason,
and in CI they fail."""

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect

from loratory.engine.errors import RunError
from loratory.engine.runs.control import request_stop
from loratory.ui.services import Services
from tests.browser.chromium import PATIENCE_MS, chromium, open_page, why_no_browser
from tests.browser.show_fake import page_of
from tests.fake_launcher import FakeLauncher
from tests.waiting import wait_until

expect.set_options(timeout=PATIENCE_MS)  # of all browser tests: it is global


@pytest.fixture(
    scope="module"
)  # while Playwright runs, its event loop is the thread's: a later file would have none of its own
def browser() -> Iterator[Browser]:
    reason = why_no_browser()
    if reason is not None:
        pytest.skip(reason)
    with chromium() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def reads_all_runs_at_once() -> Iterator[None]:
    """On a busy machine too, where reading runs takes longer than a page waits: a table of some rows has another last one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loratory.ui.backend.run_reader._AT_ONCE_SECONDS", math.inf)
        yield


@pytest.fixture
def no_run_is_left(services: Services) -> Iterator[None]:
    """Stop the runs that a test started: a page that opens while one is active shows it instead of the form."""
    yield
    assert isinstance(services.launcher, FakeLauncher)
    for run in services.launcher.started:
        with contextlib.suppress(RunError):  # it has ended
            request_stop(run)
        wait_until(lambda run=run: run.folder.read_state().is_final)


@pytest.fixture(scope="module")
def address(services: Services) -> Iterator[str]:
    """Where the page of a module's own `services` is; modules with a real server say it themselves."""
    with page_of(services) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Open a page without a draft, whose console must stay free of errors."""
    with watched_page(browser, address) as page:
        yield page


@pytest.fixture(scope="module")
def kept_page(browser: Browser, address: str) -> Iterator[Page]:
    """Open a page for the whole module, as opening one takes seconds."""
    with watched_page(browser, address) as page:
        yield page


@contextmanager
def watched_page(browser: Browser, address: str, path: str = "/") -> Iterator[Page]:
    """Open a page whose console must stay free of errors."""
    page = open_page(browser, address, path)
    errors: list[str] = []

    def note(message: str, is_error: bool) -> None:
        if is_error:
            errors.append(message)

    page.on("crash", lambda _: errors.append("The page crashed."))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: note(message.text, "Content Security Policy" in message.text))
    page.on("response", lambda response: note(f"{response.status} {response.url}", response.status >= 500))
    yield page
    page.context.close()
    assert errors == []

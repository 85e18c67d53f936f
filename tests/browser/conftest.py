"""One browser for all browser tests; where there is none they are skipped with the reason, and in CI they fail."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.chromium import chromium, why_no_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    reason = why_no_browser()
    if reason is not None:
        pytest.skip(reason)
    with chromium() as running:
        yield running

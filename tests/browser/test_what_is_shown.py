"""What a page shows is what its buttons act on, in a real browser, on fakes: runs, confirmations, pairs of answers."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import open_page, open_tab
from tests.browser.show_fake import shown
from tests.fake_services import fake_services, invent_runs
from ui.services import Services

pytestmark = pytest.mark.browser

# Machines that run tests are busy; what does not come at all fails all the same.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    invent_runs(services.runs)
    return services


@pytest.fixture(scope="module")
def address(services):
    with shown(services) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str):
    """A page without a memory, whose console must stay free of errors."""
    page = open_page(browser, address)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda response: response.status >= 500 and errors.append(f"{response.status} {response.url}"))
    yield page
    page.context.close()
    assert errors == []


def pick_run(page: Page, words: str) -> None:
    """Look at the newest run of these words on the Runs tab."""
    page.locator("#runs-table tr[data-pick]", has_text=words).first.locator("td.name").click()
    expect(page.locator("#one-run-heading h2")).to_contain_text(words)


def load_run(page: Page, words: str) -> None:
    """Load the newest run of these words for talking."""
    open_tab(page, "Chat")
    expect(page.locator("#chat-load")).to_be_enabled()
    page.locator("#chat-run input").click()
    page.get_by_role("option", name=words).first.click()
    page.locator("#chat-load").click()
    expect(page.locator("#chat-load")).to_have_text("Load")
    expect(page.locator("#chat-state")).to_contain_text("is loaded")


def test_a_pair_of_answers_goes_when_somebody_loads_another_run(page, browser, address):
    load_run(page, "faq, rank 16")
    page.locator("#chat-mode label", has_text="Blind test").click()
    page.locator("#blind-next").click()
    expect(page.locator("#blind-left")).to_be_visible()

    other = open_page(browser, address)
    load_run(other, "Qwen3-0.6B")
    other.context.close()

    expect(page.locator("#blind-left")).to_be_hidden()
    expect(page.locator("#blind-pair")).not_to_contain_text("The question")

"""A sweep of two small runs, filed on the page and trained by real workers while the browser is away."""

import pytest
from playwright.sync_api import Browser, Page, expect

from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore
from tests.browser.chromium import let_layout_settle, open_page, open_tab
from tests.browser.real_server import RealServer, real_server
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.e2e]

# The training loss, which the held-out loss of the model before its first step precedes.
_CURVE = """(place) => {
    const line = document.querySelector(place + ' .chart')?.data?.find((one) => one.name === 'train, each step');
    return line ? line.x.map((at, i) => [at, line.y[i]]) : null;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with real_server(tmp_path_factory.mktemp("sweep"), forks=True) as running:
        yield running


def fill_the_form(page: Page, model: str) -> None:
    page.locator("#model-own textarea, #model-own input").first.fill(model)
    page.locator("#model-own textarea, #model-own input").first.press("Enter")
    expect(page.locator("#model-details")).to_contain_text("LlamaForCausalLM")
    open_tab(page, "Data")
    page.locator("#samples tr[data-pick='sample:loratory-faq']").click()
    expect(page.locator("#facts")).to_contain_text("rows kept")
    open_tab(page, "Train")
    page.locator("#max-steps input").fill("6")
    page.locator("#max-steps input").press("Tab")
    page.locator("#sweep-fold button").first.click()
    let_layout_settle(page)
    expect(page.locator("#sweep-start")).to_be_enabled()


def curve_of(page: Page, place: str) -> list[list[float]]:
    return page.wait_for_function(_CURVE, arg=place).json_value()


def test_a_sweep_runs_through_the_queue_and_its_curves_are_the_same_in_every_browser(
    server: RealServer, browser: Browser, tiny_model_folder
):
    store = RunStore(LoratoryHome(server.home), local_owner())
    page = open_page(browser, server.url)
    fill_the_form(page, str(tiny_model_folder))
    page.locator("#sweep-rates textarea, #sweep-rates input").first.fill("1e-3, 3e-3")
    page.locator("#sweep-ranks textarea, #sweep-ranks input").first.fill("4")
    page.locator("#sweep-start").dblclick()

    # The page turns to the runs, of which each stands in the queue once.
    expect(page.locator("#runs-table tr[data-pick]")).to_have_count(2)
    page.locator("#runs-table tr[data-pick]").last.locator("td.name").click()
    expect(page.locator("#run-details h2")).to_contain_text("learning_rate 1e-3, r 4")
    before = curve_of(page, "#one-loss-chart")
    page.context.close()

    wait_until(lambda: all(run.folder.read_state().is_final for run in store.list()))
    runs = store.list()
    assert [run.folder.read_state().state for run in runs] == ["completed"] * 2
    adapters = [run.folder.read_config().adapter for run in runs]
    assert [(adapter.r, adapter.lora_alpha) for adapter in adapters] == [(4, 8)] * 2
    start = [run.folder.read_state().started for run in reversed(runs)]
    assert start == sorted(start)  # one after the other, in the order of the queue

    # Another browser shows the same points, and those that came while no one looked.
    other = open_page(browser, server.url)
    open_tab(other, "Runs")
    rows = other.locator("#runs-table tr[data-pick]")
    expect(rows).to_have_count(2)
    rows.last.locator("td.name").click()
    after = curve_of(other, "#one-loss-chart")
    assert [step for step, _ in after] == [1, 2, 3, 4, 5, 6]
    assert after[: len(before)] == before

    # Over each other, with only what differs.
    for number in (0, 1):
        rows.nth(number).locator(".tick").click()
        expect(rows.nth(number).locator(".tick")).to_have_attribute("aria-checked", "true")
    expect(other.locator("#differences th")).to_have_count(2)
    other.locator("#overlay-chart .main-svg").first.wait_for()
    lines = "document.querySelector('#overlay-chart .chart').data.filter((one) => one.mode === 'lines').length"
    other.wait_for_function(f"{lines} === 2")
    expect(other.locator("#differences")).to_contain_text("training.learning_rate")
    expect(other.locator("#differences")).not_to_contain_text("training.max_steps")
    for against in ("by tokens", "by time"):
        other.locator("#overlay-against label", has_text=against).click()
        words = {"by tokens": "tokens seen", "by time": "minutes of training"}[against]
        title = "document.querySelector('#overlay-chart .chart').layout.xaxis.title.text"
        other.wait_for_function(f"{title} === '{words}'")
    with other.expect_download() as download:
        other.locator("#runs-csv").click()
    assert download.value.path().read_text(encoding="utf-8").count("\n") == 3
    other.context.close()

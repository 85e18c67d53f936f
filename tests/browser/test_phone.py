"""The page on a phone, on fakes: one column that is as wide as the window, one scroller, and targets that a thumb hits."""

import pytest
from playwright.sync_api import Page, expect

from loratory.ui.services import Services
from tests.browser.chromium import barriers, choose_model_and_data, open_model_choice, open_tab, set_up
from tests.fake_services import fake_services, invent_runs

pytestmark = pytest.mark.browser

_PHONE = {"width": 390, "height": 844}
# Not measured: terms in a sentence, which only explain themselves, what is visually hidden, and plots.
_FAULTS = """() => {
  const name = (part) => `${part.closest('[id]')?.id} ${part.outerHTML.slice(0, 120)}`;
  const isVisible = (part) => part.checkVisibility({visibilityProperty: true}) && part.getBoundingClientRect().width > 2;
  const coversWindow = (part) => getComputedStyle(part).position === 'fixed' && part.offsetHeight >= innerHeight;
  const scrolls = (part) => /auto|scroll/.test(getComputedStyle(part).overflowY) && part.scrollHeight > part.clientHeight + 1;
  const scrollers = [...document.querySelectorAll('body *')].filter((part) => scrolls(part) && isVisible(part) && !coversWindow(part));
  const pressed = 'button, a[href], select, summary, textarea, input, [role=tab], [role=button]:not(.term), [data-pick]';
  const targetOf = (part) => part.matches('[type=radio], [type=checkbox]') ? part.closest('label') : part;
  const isSmall = ({offsetWidth, offsetHeight}) => offsetWidth < 44 || offsetHeight < 44;
  const targets = [...document.querySelectorAll(pressed)].filter((part) => isVisible(part) && !part.closest('.visually-hidden, svg, .plotly'));
  const isCovered = (head) => {
    const [words, box] = [document.createRange(), head.querySelector('input').getBoundingClientRect()];
    const texts = document.createTreeWalker(head.querySelector('label'), NodeFilter.SHOW_TEXT);
    const rects = [];
    while (texts.nextNode()) { words.selectNode(texts.currentNode); rects.push(...words.getClientRects()); }
    return rects.some((line) => line.right > box.left && line.bottom > box.top && line.top < box.bottom);
  };
  return [
    ...(document.documentElement.scrollWidth > innerWidth ? ['wider than the window'] : []),
    ...[...document.querySelectorAll('.block .head')].filter((head) => isVisible(head) && isCovered(head)).map((head) => `covered: ${head.innerText}`),
    ...scrollers.map((part) => `scrolls: ${name(part)}`),
    ...targets.map(targetOf).filter(isSmall).map((part) => `${part.offsetWidth} x ${part.offsetHeight}: ${name(part)}`),
  ];
}"""


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"))
    invent_runs(services.runs)
    return services


def suits_a_phone(page: Page) -> None:
    """Wait until nothing is too wide, too small or scrolls by itself; what was just laid out still finds its size."""
    try:
        page.wait_for_function(f"() => !({_FAULTS})().length", timeout=10_000)
    except Exception:
        assert page.evaluate(_FAULTS) == []
    assert barriers(page) == []


def test_every_tab_suits_a_phone(page):
    page.set_viewport_size(_PHONE)
    open_tab(page, "Model")
    rows = page.locator("#catalog tbody tr:visible")
    expect(rows).to_have_count(8)
    page.locator("#all-models summary").click()
    expect(rows.nth(20)).to_be_visible()
    page.locator("#all-models summary").click()
    choose_model_and_data(page)
    expect(page.locator("#row-shown .tokens").first).to_be_visible()
    suits_a_phone(page)

    open_tab(page, "Method")
    expect(page.locator("#method-table [data-pick]").first).to_be_visible()
    suits_a_phone(page)
    set_up(page)
    suits_a_phone(page)

    open_tab(page, "Chat")
    open_model_choice(page)
    suits_a_phone(page)
    page.get_by_role("radio", name="Chat", exact=True).press("ArrowRight")
    expect(page.get_by_role("radio", name="Blind test", exact=True)).to_be_checked()
    open_tab(page, "Export")
    expect(page.locator("#export-start")).to_be_enabled()
    page.locator("#export-form label", has_text="YAML").click()
    expect(page.locator("#export-text-shown pre")).to_be_visible()
    suits_a_phone(page)


def test_runs_are_in_sight_and_one_covers_the_window(page):
    page.set_viewport_size(_PHONE)
    open_tab(page, "Runs")
    first = page.locator("#runs-table tbody tr td.name").first
    expect(first).to_be_visible()
    search = page.locator("#runs-search textarea")
    expect(search).to_be_hidden()
    bar = page.locator("#next-step").bounding_box()
    box = first.bounding_box()
    assert box["y"] + box["height"] < bar["y"]
    suits_a_phone(page)
    page.locator("#runs-filters summary").press("Enter")
    expect(search).to_be_visible()

    page.locator("#runs-table tr", has_text="faq, rank 16").last.locator("td.name").click()
    details = page.locator("#run-details")
    row = page.locator("#runs-table tr.chosen")
    expect(details.locator("h2")).to_be_visible()
    assert details.bounding_box() == {"x": 0, "y": 0, **_PHONE}
    suits_a_phone(page)
    page.keyboard.press("Escape")
    expect(row).to_be_focused()
    row.press("Enter")
    page.locator("#run-to-train").click()
    expect(page.locator("#loss-chart .main-svg").first).to_be_visible()
    suits_a_phone(page)

    button = page.locator("#next-step .go:visible")
    expect(button).to_have_text("Chat")
    button.click()
    expect(button).to_have_text("Ask")  # where one is already, the bar has the step itself
    expect(button).to_be_in_viewport()
    suits_a_phone(page)

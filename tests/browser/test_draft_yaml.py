"""The draft as YAML in a real browser: it follows the form, leads to what is wrong, and is saved as a preset."""

import pytest
from playwright.sync_api import expect

from loratory.ui.services import Services
from tests.browser.chromium import barriers, fits_its_window, reload
from tests.fake_services import fake_services

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]

_CURSOR = "() => document.querySelector('#draft-yaml textarea').selectionStart"
_DROPS = """(text) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], 'mine.yaml'));
  document.querySelector('#draft-yaml textarea').dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer}));
}"""
_WRONG = "model:\n  id: smollm2-135m-instruct\ntraining:\n  learning_rate: 7\n"

_SAVED = "training:\n  max_steps: 9\n"


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    return fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)


def test_the_draft_is_read_corrected_and_applied_as_yaml(page):
    text, problems = page.locator("#draft-yaml textarea"), page.locator("#yaml-problems li")
    opener = page.locator("#panel").get_by_role("button", name="YAML")
    opener.click()
    expect(text).to_be_focused()
    page.locator("#catalog [data-pick]").first.click()
    expect(text).to_have_value("model:\n  id: smollm2-135m-instruct\n")  # follows the form
    expect(page.locator("#draft-yaml .copyable pre")).to_have_text(
        "loratory train --set model.id=smollm2-135m-instruct"
    )

    page.evaluate(_DROPS, _WRONG)
    expect(problems).to_have_text(["line 4: training.learning_rate: 7 is out of range; it must be at most 1.0."])
    expect(page.locator("#draft-yaml .gutter b")).to_have_text("✗ 4")
    problems.get_by_role("button").click()
    expect(text).to_be_focused()
    assert page.evaluate(_CURSOR) == _WRONG.index("  learning_rate")
    text.press("Control+Enter")  # nothing is applied
    text.fill(_WRONG.replace("7", "7e-4"))
    expect(problems).to_have_count(0)
    assert barriers(page) == []
    text.press("Control+Enter")

    expect(page.locator("#applied")).to_contain_text("YAML: Learning rate 0.0002 → 0.0007")
    expect(text).to_have_value(_WRONG.replace("7", "0.0007"))  # as the form writes it
    text.press("Escape")
    expect(text).to_be_hidden()
    expect(opener).to_be_focused()


def test_the_draft_is_saved_as_a_preset_used_and_deleted(page, services):
    page.get_by_role("tab", name="Train").click()
    opener = page.get_by_role("button", name="Save the draft as preset")
    opener.click()
    text, name = page.locator("#draft-yaml textarea"), page.get_by_label("Save as my preset")
    problems, own = page.locator("#yaml-problems li"), page.locator("#presets .own")
    text.fill("training:\n  learning_rate: 7\n")
    name.fill("quick steps")
    name.press("Enter")
    expect(problems).to_have_text(["line 2: training.learning_rate: 7 is out of range; it must be at most 1.0."])
    text.fill(_SAVED)
    name.press("Enter")
    expect(problems).to_have_text(["A preset cannot be named 'quick steps'. Use up to 40 letters, digits, - and _."])
    name.fill("quick-steps")
    page.locator("#draft-yaml").get_by_role("button", name="Save", exact=True).click()
    expect(problems).to_have_text(["Saved as quick-steps."])
    expect(own).to_have_count(1)
    assert barriers(page) == []
    page.get_by_role("button", name="Discard edits").click()
    name.press("Escape")
    expect(opener).to_be_focused()

    own.get_by_text("quick-steps").click()
    expect(page.locator("#applied")).to_contain_text("Preset: Max steps -1 → 9")
    reload(page)
    own.get_by_role("button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    question = page.get_by_role("dialog", name="Delete quick-steps")
    expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    assert barriers(page) == []
    page.keyboard.press("Escape")
    expect(question).to_be_hidden()
    expect(own).to_have_count(1)
    own.get_by_role("button", name="Delete quick-steps").click()
    question.get_by_role("button", name="Delete", exact=True).press("Enter")
    expect(own).to_have_count(0)
    assert list(services.home.presets.iterdir()) == []


def test_on_a_phone_the_draft_as_yaml_is_a_page(page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.locator("#panel").get_by_role("button", name="YAML").click()
    drawer = page.locator("#yaml-drawer")
    expect(drawer).to_be_visible()

    assert drawer.bounding_box() == {"x": 0, "y": 0, "width": 390, "height": 800}
    fits_its_window(page)
    heights = drawer.get_by_role("button").evaluate_all("(buttons) => buttons.map((button) => button.offsetHeight)")
    assert min(heights) >= 44
    drawer.get_by_role("button", name="Close").click()
    expect(drawer).to_be_hidden()

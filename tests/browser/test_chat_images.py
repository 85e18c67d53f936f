"""A picture in the chat, on a wide page and on a phone."""

import io

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from loratory.ui.services import Services
from tests.browser.chromium import barriers, fits_its_window, open_model_choice, open_tab
from tests.fake_chat import FakeChatSession
from tests.fake_services import fake_services, invent_runs
from tests.waiting import wait_until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    assert isinstance(services.chat, FakeChatSession)
    services.chat.takes_images = True
    invent_runs(services.runs)
    return services


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), color).save(file, "PNG")
    return file.getvalue()


PASTE = """(bytes) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], 'pasted.png', {type: 'image/png'}));
  const box = document.querySelector('#chat-question textarea');
  box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}));
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_is_picked_pasted_removed_and_sent(page: Page, services, width):
    assert isinstance(services.chat, FakeChatSession)
    services.chat.requests.clear()
    page.set_viewport_size({"width": width, "height": 844})
    open_tab(page, "Chat")
    open_model_choice(page)
    page.locator("#chat-load").click()
    expect(page.locator("#chat-state")).to_contain_text("is loaded")
    add = page.get_by_role("button", name="Add image")
    with page.expect_file_chooser() as chooser:
        add.click()
    assert chooser.value.element.get_attribute("accept") == "image/*"
    chooser.value.set_files([{"name": "red.png", "mimeType": "image/png", "buffer": png("red")}])
    pictures = page.locator("#suggestions .pictures img")
    expect(pictures).to_have_count(1)
    page.evaluate(PASTE, list(png("blue")))
    expect(pictures).to_have_count(2)
    page.get_by_role("button", name="Remove image 1").click()
    expect(pictures).to_have_count(1)
    expect(pictures).to_have_attribute("alt", "Image 1, 60 × 40 pixels")
    assert barriers(page) == []

    page.locator("#chat-question textarea").fill("What is it?")
    page.locator("#chat-send").click()

    wait_until(lambda: services.chat.requests)
    (message,) = services.chat.requests[-1].messages
    assert len(message.images) == 1
    expect(page.locator("#transcript .question img")).to_have_count(1)
    expect(pictures).to_have_count(0)
    expect(page.locator("#transcript .answer").first).to_contain_text("stop token")
    expect(add).to_be_visible()
    fits_its_window(page)
    assert barriers(page) == []

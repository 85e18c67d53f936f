"""What fills the form: a preset, a run, a draft that the browser remembers."""

import gradio as gr
import pytest

from tests.invented_runs import a_config
from ui.page import Page
from ui.tabs.method import MethodTab


@pytest.fixture
def page(laid_out) -> Page:
    return laid_out(MethodTab)._page


def filled(page: Page, config) -> dict:
    return dict(zip(page.form.names, page._fill(config.model_dump(mode="json")), strict=True))


def test_a_value_beyond_the_end_of_its_slider_takes_the_end_along(page):
    values = filled(page, a_config(adapter__r=512, adapter__lora_alpha=64))

    assert values["adapter.r"] == gr.update(value=512, maximum=512)
    assert values["adapter.lora_alpha"] == 64

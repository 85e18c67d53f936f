"""What fills the form: a preset, a run, a draft that the browser remembers."""

import gradio as gr
import pytest

from tests.invented_runs import InventedRun, a_config, write_run
from ui.page import Page
from ui.tabs.method import MethodTab, render_begins_with
from ui.views.side_panel import render_side_panel


@pytest.fixture
def page(laid_out) -> Page:
    return laid_out(MethodTab)._page


def filled(page: Page, config) -> dict:
    return dict(zip(page.form.names, page._fill(config.model_dump(mode="json")), strict=True))


def test_a_value_beyond_the_end_of_its_slider_takes_the_end_along(page):
    values = filled(page, a_config(adapter__r=512, adapter__lora_alpha=64))

    assert values["adapter.r"] == gr.update(value=512, maximum=512)
    assert values["adapter.lora_alpha"] == 64


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (None, ""),
        ("/somewhere/my <adapter>", "the adapter in my <adapter>"),
        ("20250101-000000-000-abcd", "the adapter of 20250101-000000-000-abcd, a run that is gone"),
    ],
)
def test_the_adapter_that_a_draft_begins_with_is_told(page, start, words):
    assert page.begins_with(page.draft(page.form.updates({"adapter": {"warm_start": start}}))) == words


def test_the_run_whose_adapter_a_draft_begins_with_is_told_by_its_name_beside_every_tab(page, services):
    run = write_run(services.runs, a_config(run__name="<i>faq"), InventedRun())
    draft = page.draft(page.form.updates({"adapter": {"warm_start": run.id}}))
    words = page.begins_with(draft)

    assert words == "the adapter of <i>faq"
    for html in (render_side_panel(draft, words), render_begins_with(words)):
        assert "egins with" in html
        assert "the adapter of &lt;i&gt;faq" in html
    assert "Take it out" in render_begins_with(words)
    assert render_begins_with("") == ""
    assert "Begins" not in render_side_panel(draft)

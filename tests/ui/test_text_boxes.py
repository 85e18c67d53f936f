"""Text boxes report every edit: by keyboard, clipboard or input method."""

import gradio as gr

from loratory.ui.build import build_app


def test_no_text_box_that_can_be_seen_waits_for_a_key_that_writes_a_character(services):
    page = build_app(services)
    events = {
        (block.elem_id or block.label, event)
        for function in page.fns.values()
        for number, event in function.targets
        if isinstance(block := page.blocks.get(number), gr.Textbox) and block.visible and event in ("input", "change")
    }

    assert ("runs-search", "change") in events
    assert ("model-search", "change") in events
    # An answer that failed puts its question back together with the error, which typing clears.
    assert [name for name, event in events if event == "input"] == ["chat-question"]

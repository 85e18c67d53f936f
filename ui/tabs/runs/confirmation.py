"""A question before something is lost: it names the run that is shown, and goes when another one is shown."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr
from gradio.components.base import Component

from engine.errors import EngineError
from ui.errors import trouble


class Confirmation:
    """Lays out the question with its two answers; whoever shows another run closes `panel`.

    Args:
        yes: What happens, on the button that does it.
        no: What does not happen.
        elem_id: Id of the whole; those of the buttons are given by `yes_id` and `no_id`.
    """

    def __init__(self, yes: str, no: str, *, elem_id: str, yes_id: str, no_id: str) -> None:
        with gr.Column(visible=False, elem_id=elem_id) as self.panel:
            self.question = gr.HTML()
            with gr.Row():
                self.really = gr.Button(yes, variant="stop", scale=0, min_width=150, elem_id=yes_id)
                self.keep = gr.Button(no, scale=0, min_width=150, elem_id=no_id)

    def wire(self, opened: Any, ask: Callable[[str], str], shown: Component) -> None:
        """Connect what opens and what closes it.

        Args:
            opened: Trigger of the button that asks.
            ask: The question about a run, as HTML; may raise an EngineError.
            shown: Holds the id of the run that is shown.
        """
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}

        def open_for(run_id: str) -> tuple[Any, str]:
            try:
                return gr.update(visible=True), ask(run_id)
            except EngineError as error:
                return gr.update(visible=True), trouble(error)

        opened(open_for, shown, [self.panel, self.question], **quick)
        self.keep.click(lambda: gr.update(visible=False), None, self.panel, **quick)


def render_question(title: str, words: str) -> str:
    """The run that it is about, and what would be lost."""
    return f'<div class="notice"><b>{escape(title)}</b> {words}</div>'

"""The download of the chosen model's tokenizer, in the same words on each tab that waits for it."""

from typing import Any

import gradio as gr

from engine.config.run import ModelConfig
from ui.backend.background import Work
from ui.backend.tokenizers import key_of
from ui.components import Updates, live_html, poll, poll_answer, visible_if
from ui.page import Page
from ui.views.html import small, work_status

_LOOK_SECONDS = 0.5
_BLINK_SECONDS = 0.4  # a tokenizer that is there already is found in that time, without a flicker
_STOPPED = "The download was stopped."


class TokenizerStatus:
    """Lays out the line with the progress; its `ended` fires when there is something new to show with the model.

    Args:
        page: The page.
        tab: Name of the tab, for ids.
    """

    def __init__(self, page: Page, tab: str) -> None:
        self._page = page
        self.line = live_html(elem_id=f"{tab}-tokenizer")
        self.again = gr.Button("Try again", size="sm", visible=False, elem_id=f"{tab}-tokenizer-again")
        self.poll = poll(self._news, _LOOK_SECONDS, elem_id=f"{tab}-tokenizer-live")

    @property
    def outputs(self) -> list[Any]:
        """What `updates` changes."""
        return [self.line, self.again, self.poll]

    @property
    def ended(self) -> Any:
        """Trigger: the tokenizer is there, or cannot be downloaded."""
        return self.poll.submit

    def updates(self, model: ModelConfig | None, *, again: bool = False) -> Updates:
        """Start the download of a tokenizer where it is not here yet, and return its status after a short wait.

        Args:
            model: The model.
            again: Also retry a download that has failed.
        """
        if model is None:
            return {self.line: "", self.again: visible_if(False), self.poll: ""}
        work = self._page.services.tokenizers.ask(model, again=again)
        work.ended.wait(_BLINK_SECONDS)
        return {
            self.line: _render(work),
            self.again: visible_if(work.error is not None),
            self.poll: key_of(model) if work.is_under_way else "",
        }

    def _news(self, key: str, seen: str) -> str | None:
        work = self._page.services.tokenizers.find(key)
        stamp = work.stamp if work is not None else "none"
        if stamp == seen:
            return None
        has_ended = work is None or not work.is_under_way
        return poll_answer(stamp, {str(self.line.elem_id): _render(work)}, submit=has_ended)


def _render(work: Work[None] | None) -> str:
    """Return one line while it is under way, one box when it failed, nothing when it is there."""
    html = work_status(work, _STOPPED)
    if work is None or not work.is_under_way:
        return html
    return html + small("Rows are shown without tokens until the tokenizer is here.")

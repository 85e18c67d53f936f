"""How far the tokenizer of the chosen model is on its way, in the same words on each tab that waits for it."""

from typing import Any

import gradio as gr

from engine.config.model import ModelConfig
from ui.backend.background import Work
from ui.backend.tokenizers import key_of
from ui.live import asking, news, place
from ui.page import Page
from ui.views.work import render_work, stamp_of

_LOOK_SECONDS = 0.5
_BLINK_SECONDS = 0.4  # what stands ready already is found out in that time, so that nothing flickers
_STOPPED = "The download was stopped."


class FetchingPart:
    """Lays out the line with the progress; its `ended` fires when there is something new to show with the model.

    Args:
        page: The page.
        tab: Name of the tab, for ids.
    """

    def __init__(self, page: Page, tab: str) -> None:
        self._page = page
        self._shown = place(elem_id=f"{tab}-fetching")
        self.again = gr.Button("Try again", size="sm", visible=False, elem_id=f"{tab}-fetch-again")
        self._asking = asking(self._news, _LOOK_SECONDS, elem_id=f"{tab}-fetching-live")

    @property
    def outputs(self) -> list[Any]:
        """What `updates` is for."""
        return [self._shown, self.again, self._asking]

    @property
    def ended(self) -> Any:
        """Trigger: the tokenizer is there, or cannot be had."""
        return self._asking.submit

    def updates(self, model: ModelConfig | None, *, again: bool = False) -> list[Any]:
        """Have the tokenizer fetched where it is not here yet, and say how that stands; waits for the blink of an eye.

        Args:
            model: Whose tokenizer.
            again: Try anew what has failed before.
        """
        if model is None:
            return ["", gr.update(visible=False), ""]
        work = self._page.services.tokenizers.ask(model, again=again)
        work.ended.wait(_BLINK_SECONDS)
        failed = work.error is not None
        return [render_fetching(work), gr.update(visible=failed), key_of(model) if work.is_under_way else ""]

    def _news(self, key: str, seen: str) -> str | None:
        work = self._page.services.tokenizers.look(key)
        stamp = stamp_of(work) or "none"
        if stamp == seen:
            return None
        has_ended = work is None or not work.is_under_way
        return news(stamp, {str(self._shown.elem_id): render_fetching(work)}, submit=has_ended)


def render_fetching(work: Work[None] | None) -> str:
    """One line while it is under way, one box when it failed, nothing when it is there."""
    shown = render_work(work, _STOPPED)
    if work is None or not work.is_under_way:
        return shown
    return f'{shown}<p class="small">Until its tokenizer is here, rows are shown without tokens.</p>'

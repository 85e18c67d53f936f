"""What one look at a run puts on the page, what stands there without a run, and what a page asks for by itself."""

from typing import Any, NamedTuple, Self

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import EngineError
from ui.errors import trouble
from ui.views.loss_chart import ChartView
from ui.views.run_view import NO_RUN


class Drawn(NamedTuple):
    """What one look at a run puts on the page, in the order of `ui.tabs.train.follow.FollowPart.outputs`."""

    live: Any
    heading: Any
    trouble: Any
    body: Any
    loss: Any
    small: Any
    memory: Any
    warnings: Any
    timeline: Any
    log: Any
    stop: Any
    cancel: Any
    resume: Any
    anyway: Any
    chat: Any
    shown: Any  # id of the run; what the buttons act on
    confirm: Any
    choice: Any


class Question(BaseModel):
    """Which run a page follows, and how it shows it; comes from a browser, so that it may be anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(max_length=100)
    seen: str = Field(max_length=1000)  # stamp of what the page showed when it was asked to follow
    smoothing: float = Field(ge=0, le=1)
    log_axis: bool
    log_open: bool

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """The question that a page sent; None where it is none."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def view(self) -> ChartView:
        return ChartView(self.smoothing, self.log_axis)


def empty(heading: str) -> Drawn:
    """What is left of a view without a run."""
    hidden = gr.update(visible=False)
    words = dict.fromkeys(("live", "trouble", "loss", "small", "memory", "warnings", "timeline", "log", "shown"), "")
    buttons = dict.fromkeys(("body", "stop", "cancel", "resume", "anyway", "chat", "confirm"), hidden)
    return Drawn(heading=heading, choice=gr.skip(), **words, **buttons)


CURVES = ("heading", "loss", "small", "memory", "warnings", "timeline", "log")  # what a step changes
NOTHING = empty(NO_RUN)


def gone(error: EngineError) -> Drawn:
    """What is left of a run that cannot be read any more."""
    return empty(trouble(error))

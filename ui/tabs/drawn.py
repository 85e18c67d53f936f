"""What one look at a run puts on the page, and what stands there without a run."""

from typing import Any, NamedTuple

import gradio as gr

from engine.errors import EngineError
from ui.errors import trouble
from ui.views.run_view import NO_RUN


class Drawn(NamedTuple):
    """What one look at a run puts on the page, in the order of `ui.tabs.follow.FollowPart.outputs`."""

    stamp: Any
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
    timer: Any
    choice: Any


def empty(heading: str) -> Drawn:
    """What is left of a view without a run."""
    hidden = gr.update(visible=False)
    words = dict.fromkeys(("stamp", "trouble", "loss", "small", "memory", "warnings", "timeline", "log"), "")
    buttons = dict.fromkeys(("body", "stop", "cancel", "resume", "anyway", "chat"), hidden)
    return Drawn(heading=heading, timer=gr.update(active=False), choice=gr.skip(), **words, **buttons)


CURVES = ("stamp", "heading", "loss", "small", "memory", "warnings", "timeline", "log")
OFFERS = ("trouble", "body", "stop", "cancel", "resume", "anyway", "chat")
NOTHING = empty(NO_RUN)
NOTHING_NEW = Drawn(**{name: gr.skip() for name in Drawn._fields})._replace(timer=gr.update(active=False))


def gone(error: EngineError) -> Drawn:
    """What is left of a run that cannot be read any more."""
    return empty(trouble(error))

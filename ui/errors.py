"""An EngineError into what the person sees: a box in place, or a message that leaves by itself."""

import functools
import logging
from collections.abc import Callable
from html import escape
from typing import ParamSpec, TypeVar

import gradio as gr

from engine.errors import ConfigError, EngineError

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

UNEXPECTED = EngineError(
    "Something unexpected happened.", "Try again; the terminal in which Loratory runs shows the details."
)


def explained(error: Exception) -> EngineError:
    """What a person is told of any exception; the details of one that nobody foresaw go to the log."""
    if isinstance(error, EngineError):
        return error
    _log.error("something unexpected happened", exc_info=error)
    return UNEXPECTED


def trouble(error: EngineError) -> str:
    """HTML of one error: what happened, then what to do; all problems of a configuration as a list."""
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "One setting needs your attention" if count == 1 else f"{count} settings need your attention"
        items = "".join(
            f"<li>{f'<code>{escape(field)}</code> ' if field else ''}{escape(message)}</li>"
            for field, message in error.problems
        )
        return f'<div class="trouble" role="alert"><b>{head}</b><ul>{items}</ul></div>'
    return f'<div class="trouble" role="alert"><b>{escape(error.what)}</b>{escape(error.fix)}</div>'


def shown_in_place(handler: Callable[P, R]) -> Callable[P, R | str]:
    """Let a handler whose one output is HTML return the trouble box instead of raising."""

    @functools.wraps(handler)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | str:
        try:
            return handler(*args, **kwargs)
        except EngineError as error:
            return trouble(error)
        except Exception:
            _log.exception("a handler of the page failed")
            return trouble(UNEXPECTED)

    return guarded


def shown_as_message(handler: Callable[P, R]) -> Callable[P, R]:
    """Let a handler's EngineError appear as a message over the page; the outputs stay as they are."""

    @functools.wraps(handler)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except EngineError as error:
            raise gr.Error(escape(str(error)), title="That did not work", duration=12, print_exception=False) from error

    return guarded

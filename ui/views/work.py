"""How long work stands: a bar while it is under way, one box when it failed."""

from html import escape
from typing import Any

from ui.backend.background import Work
from ui.errors import trouble


def render_work(work: Work[Any] | None, stopped_words: str) -> str:
    """What is happening; "" where nothing is, or where the result says all.

    Args:
        work: As `BackgroundWork.look` gives it.
        stopped_words: What is said after a stop.
    """
    if work is None:
        return ""
    if work.is_under_way:
        return _progress(work)
    if work.was_stopped:
        return f'<div class="notice" role="status">{escape(stopped_words)}</div>'
    return trouble(work.error) if work.error is not None else ""


def stamp_of(work: Work[Any] | None) -> str:
    """Changes whenever what is shown of the work has changed."""
    if work is None:
        return ""
    return f"{work.started}:{work.is_under_way}:{work.stopping}:{work.message}:{work.fraction}"


def _progress(work: Work[Any]) -> str:
    message = "Stopping …" if work.stopping else work.message
    bar = ""
    if work.fraction is not None:
        percent = 100 * work.fraction
        bar = (
            f'<div class="progress" role="progressbar" aria-label="{escape(work.title, quote=True)}" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></div>'
        )
    return f'<div class="sentence" role="status" aria-live="polite">{escape(message)}{bar}</div>'

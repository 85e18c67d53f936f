"""The runs that wait, in the order in which they will start."""

from collections.abc import Sequence
from html import escape

from engine.runs.summary import RunSummary
from ui.views.quantities import plural

_LISTED = 12
_MOVES = (("first", "⇈", "Start next"), ("up", "↑", "Move up"), ("down", "↓", "Move down"))


def render_queue(waiting: Sequence[RunSummary]) -> str:
    """One line for each waiting run, with buttons that move it; nothing where nobody waits.

    Args:
        waiting: The next to start first.
    """
    if not waiting:
        return ""
    lines = "".join(_line(place, row, len(waiting)) for place, row in enumerate(waiting[:_LISTED], start=1))
    left = len(waiting) - _LISTED
    more = f'<p class="small">… and {plural(left, "more run", "more runs")} behind them.</p>' if left > 0 else ""
    return (
        f"<h2>Waiting</h2><table class=\"plain queue\" aria-label='Runs that wait, the next one first'>"
        f"<tbody>{lines}</tbody></table>{more}"
    )


def _line(place: int, row: RunSummary, count: int) -> str:
    cause = row.cause or "starts as soon as a device is free"
    identifier = escape(row.id, quote=True)
    buttons = "".join(
        f'<button type="button" class="move" data-pick="{move}:{identifier}" title="{words}" '
        f'aria-label="{words}: {escape(row.name, quote=True)}"{_disabled(move, place, count)}>{sign}</button>'
        for move, sign, words in _MOVES
    )
    anyway = (
        f'<button type="button" class="plainly" data-pick="anyway:{identifier}">Start anyway</button>'
        if row.reason == "memory"
        else ""
    )
    return (
        f'<tr><td class="r soft place">{place}</td><td class="name">{escape(row.name)}'
        f'<span class="under">{escape(cause)}</span></td><td class="moves">{anyway}{buttons}'
        f'<button type="button" class="plainly" data-pick="out:{identifier}">Take out</button></td></tr>'
    )


def _disabled(move: str, place: int, count: int) -> str:
    useless = place == count if move == "down" else place == 1
    return " disabled" if useless else ""

"""What to change so that a run fits, or what the room that is left is good for; each change is one click."""

from collections.abc import Sequence
from html import escape

from engine.memory.advice import Advice, AdvisedChange
from engine.memory.estimate import MemoryEstimate
from ui.pick import pickable
from ui.views.quantities import gib


def render_advice(advice: Advice, estimate: MemoryEstimate) -> str:
    """Changes that would fit, where the draft does not; else those that put the room that is left to use."""
    if estimate.verdict == "fits":
        return _table("Room for", (*advice.changes, *advice.limits))
    changes = [change for change in (*advice.changes, *advice.limits) if change.needed_bytes < estimate.needed_bytes]
    if not changes:
        return '<p class="small">No single change makes it fit; a smaller model would.</p>'
    return _table("One click that helps", changes)


def _table(title: str, changes: Sequence[AdvisedChange]) -> str:
    if not changes:
        return ""
    rows = "".join(
        f"<tr {pickable(change.kind)}><td>{escape(change.change)}"
        f'<span class="under">{escape(change.cost)}</span></td>'
        f'<td class="r"><span class="{_mark(change.verdict)}">{gib(change.needed_bytes)}</span></td></tr>'
        for change in changes
    )
    return (
        f'<div class="section"><h3>{title}</h3><table class="plain"><thead><tr><th>Change</th>'
        f'<th class="r">Needs, GiB</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _mark(verdict: str) -> str:
    return {"fits": "yes", "tight": "tight"}.get(verdict, "no")

"""What to change so that a run fits, or how much room is left; each change is one click."""

from html import escape

from engine.config.run import RunConfig
from engine.memory.advice import Advice
from engine.memory.estimate import MemoryEstimate
from ui.pick import pickable
from ui.views.quantities import gib


def render_advice(advice: Advice, estimate: MemoryEstimate, config: RunConfig) -> str:
    """Changes that would fit, where the draft does not; else the room that is left."""
    if estimate.verdict == "fits":
        return _room(advice, config)
    changes = [change for change in advice.changes if change.needed_bytes < estimate.needed_bytes]
    if not changes:
        return '<p class="small">No single change makes it fit; a smaller model would.</p>'
    rows = "".join(
        f"<tr {pickable(change.change)}><td>{escape(change.change)}"
        f'<span class="under">{escape(change.cost)}</span></td>'
        f'<td class="r"><span class="{_mark(change.verdict)}">{gib(change.needed_bytes)}</span></td></tr>'
        for change in changes
    )
    return (
        '<div class="section"><h3>One click that helps</h3><table class="plain"><thead><tr><th>Change</th>'
        f'<th class="r">Needs, GiB</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _mark(verdict: str) -> str:
    return {"fits": "yes", "tight": "tight"}.get(verdict, "no")


def _room(advice: Advice, config: RunConfig) -> str:
    room = []
    batch, length = advice.largest_batch_size, advice.longest_max_length
    if batch is not None and batch > config.training.per_device_train_batch_size:
        room.append(f"a batch of {batch:,}")
    if length is not None and length > config.training.max_length:
        room.append(f"rows of {length:,} tokens")
    return f'<p class="small">Room for {", or for ".join(room)}.</p>' if room else ""

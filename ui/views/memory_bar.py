"""The memory bar: an estimate, stacked by component, against what the device has."""

from html import escape

from engine.memory.estimate import MemoryEstimate
from ui.views.quantities import gib

# Okabe and Ito's palette: told apart by people with any kind of colour vision; the legend gives names and figures too.
COMPONENT_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999", "#D55E00", "#F0E442")

_VERDICTS = {"fits": "Fits.", "tight": "Tight.", "does_not_fit": "Does not fit."}


def render_memory_bar(estimate: MemoryEstimate) -> str:
    """HTML of the stacked bar, its legend in GiB, the verdict in words and the phase in which the peak falls."""
    scale = max(estimate.total_bytes, estimate.needed_bytes)
    spans, legend = [], []
    certain = [component for component in estimate.components if component.key != "margin"]
    for component, colour in zip(certain, COMPONENT_COLOURS, strict=False):
        title = escape(f"{component.label}: {gib(component.bytes)} GiB. {component.depends_on}", quote=True)
        width = 100 * component.bytes / scale
        spans.append(f'<span title="{title}" style="width:{width:.2f}%;background:{colour}"></span>')
        legend.append(
            f'<i style="background:{colour}"></i><span title="{title}">{escape(component.label)}</span>'
            f'<span class="v" title="{component.bytes:,} bytes">{gib(component.bytes)}</span>'
        )
    margin = estimate.needed_bytes - estimate.expected_bytes
    bound = (
        f'<em class="bound" title="At most {gib(estimate.needed_bytes)} GiB, nine times out of ten" '
        f'style="left:{100 * estimate.expected_bytes / scale:.2f}%;width:{100 * max(0, margin) / scale:.2f}%"></em>'
    )
    free = (
        f'<em class="free" title="{gib(estimate.free_bytes)} GiB are free now" '
        f'style="left:{100 * min(estimate.free_bytes, scale) / scale:.2f}%"></em>'
    )
    expected, needed, available = (
        gib(value) for value in (estimate.expected_bytes, estimate.needed_bytes, estimate.free_bytes)
    )
    reading = f"{expected} GiB expected, {needed} GiB at most, {available} of {gib(estimate.total_bytes)} GiB free"
    notes = "".join(f'<p class="small">{escape(note)}</p>' for note in estimate.notes)
    return (
        f'<div class="section"><h3>Memory on {escape(estimate.device_name)}, GiB</h3>'
        f'<div class="bar" role="img" aria-label="{reading}">{"".join(spans)}{bound}{free}</div>'
        f'<div class="legend">{"".join(legend)}</div>'
        f'<p class="verdict"><b class="{estimate.verdict}">{_VERDICTS[estimate.verdict]}</b> '
        f"{expected} expected, {needed} at most, {available} free.</p>"
        f'<p class="small">The peak falls in the {escape(estimate.phase_words)}.</p>{notes}</div>'
    )

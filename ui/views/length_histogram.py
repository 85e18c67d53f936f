"""How long the rows are, and what the cut at `max_length` takes away."""

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _BOTTOM = 720, 150, 22


def render_length_histogram(edges: Sequence[int], counts: Sequence[int], max_length: int) -> str:
    """SVG bars; bins beyond the cut are hatched as well as coloured, and the cut is a labelled line.

    Args:
        edges: Lower edges of the bins in tokens, and the upper edge of the last: one more than `counts`.
        counts: Rows in each bin.
        max_length: Where rows are cut, in tokens.
    """
    if not counts or max(counts) == 0:
        return ""
    span = max_length if edges[-1] <= max_length <= 1.3 * edges[-1] else edges[-1] or 1
    scale = _WIDTH / span
    tallest = max(counts)
    bars = []
    for lower, upper, rows in zip(edges, edges[1:], counts, strict=False):
        height = (_HEIGHT - 18) * rows / tallest
        x, width = lower * scale, max(1.0, (upper - lower) * scale - 1)
        css = "cut" if lower >= max_length else "kept"
        title = f"{rows:,} row{'' if rows == 1 else 's'} of {lower:,} to {upper - 1:,} tokens"
        bars.append(
            f'<rect class="{css}" x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )
    cut = ""
    if max_length <= span:
        x = max_length * scale
        anchor = "end" if x > _WIDTH * 0.7 else "start"
        offset = -6 if anchor == "end" else 6
        cut = (
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>'
            f'<text x="{x + offset:.1f}" y="11" text-anchor="{anchor}">cut at {max_length:,}</text>'
        )
    ticks = "".join(
        f'<text x="{position * scale:.1f}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{position:,.0f}</text>'
        for position, anchor in ((0, "start"), (span / 2, "middle"), (span, "end"))
    )
    label = f"Histogram of row lengths; the longest rows have {edges[-1]:,} tokens, rows are cut at {max_length:,}."
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT + _BOTTOM}" role="img" aria-label="{escape(label)}">'
        '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line x1="0" y1="0" x2="0" y2="5" class="hatching"/></pattern></defs>'
        f'<line class="floor" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>{"".join(bars)}{cut}{ticks}</svg>'
    )

"""Preferences in figures: which answer of pairs is longer, and how many rated answers are good."""

from html import escape

from engine.data.contract import DatasetReport, PairLengths
from ui.views.html import fold, plural, small

_WIDTH, _HEIGHT, _BOTTOM = 400, 92, 22  # of the chart
_TOP = 16  # for the words above the bars
_MOST_LOPSIDED = 4 / 3  # by which the more frequent label may outweigh the other one; see `_balance`


def render_preferences(report: DatasetReport) -> str:
    """Return the lengths of both answers, or the balance of labels; empty for other rows."""
    parts = []
    if report.desirable is not None:
        parts.append(_balance(report.desirable, report.kept - report.desirable))
    if report.prompts is not None and report.held_out_rows:
        parts.append(_prompts(report))
    section = f"<section>{''.join(parts)}</section>" if parts else ""
    lengths = report.pair_lengths
    return section + (_length_differences(lengths) if lengths is not None and lengths.pairs else "")


def _prompts(report: DatasetReport) -> str:
    rows = "pairs" if report.pair_lengths is not None else "answers"
    same = f"each of the {report.kept:,} {rows} has its own prompt"
    if report.prompts != report.kept:
        same = f"{plural(report.prompts or 0, 'prompt')} in all, whose {rows} are all trained on or all held out"
    return small(f"{same[:1].upper()}{same[1:]}. No prompt is on both sides of the split.")


def _length_differences(lengths: PairLengths) -> str:
    unit = lengths.unit
    words = (
        f"The chosen answer is longer in {lengths.chosen_longer:,} of {plural(lengths.pairs, 'pair')} "
        f"({lengths.chosen_longer / lengths.pairs:.0%}), the rejected one in {lengths.rejected_longer:,}"
        f"{f', and {lengths.equal:,} are equally long' if lengths.equal else ''}. "
        f"Half of the chosen answers are at most {_difference(lengths.median, unit)}."
    )
    sentence = f'<p class="lead num">{escape(words)}</p>'
    figure = f"the chosen answer is longer in {lengths.chosen_longer / lengths.pairs:.0%} of the pairs"
    return fold("Chosen and rejected", figure, f'<div class="beside">{sentence}{_chart(lengths, words)}</div>')


def _difference(value: int, unit: str) -> str:
    one = unit.removesuffix("s")
    if value == 0:
        return "as long as the rejected one"
    return f"{plural(abs(value), one)} {'longer' if value > 0 else 'shorter'} than the rejected one"


def _chart(lengths: PairLengths, words: str) -> str:
    """Return SVG bars around a line at zero; those of pairs with a longer rejected answer are hatched as well as coloured."""
    edges, counts = lengths.histogram.edges, lengths.histogram.counts
    scale, most = _WIDTH / (edges[-1] - edges[0]), max(counts)
    bars = []
    for lower, upper, pairs in zip(edges, edges[1:], counts, strict=False):
        height = (_HEIGHT - _TOP - 4) * pairs / most
        x, width = (lower - edges[0]) * scale, max(1.0, (upper - lower) * scale - 1)
        css = "cut" if upper <= 0 else "even" if lower <= 0 else "kept"
        title = f"{plural(pairs, 'pair')}: chosen answer {lower:+,} to {upper - 1:+,} {lengths.unit}"
        bars.append(
            f'<rect class="{css}" x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )
    zero = -edges[0] * scale + scale / 2  # the middle of the bin that holds 0
    last = edges[-1] - 1
    ticks = "".join(
        f'<text x="{x:.1f}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in (
            (0, "start", f"{-last:+,} {lengths.unit}"),
            (zero, "middle", "0"),
            (_WIDTH, "end", f"{last:+,}"),
        )
    )
    sides = (
        f'<text x="{zero - 10:.1f}" y="11" text-anchor="end">rejected is longer</text>'
        f'<text x="{zero + 10:.1f}" y="11">chosen is longer</text>'
    )
    return (
        f'<svg class="histogram differences" viewBox="0 0 {_WIDTH} {_HEIGHT + _BOTTOM}" role="img" aria-label="{escape(words)}">'
        '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line x1="0" y1="0" x2="0" y2="5" class="hatching"/></pattern></defs>'
        f'<line class="floor" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>{"".join(bars)}'
        f'<line class="limit" x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{_HEIGHT}"/>{sides}{ticks}</svg>'
    )


def _balance(good: int, bad: int) -> str:
    """Return the number of answers by label, and the weights that balance them.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2, which TRL's `KTOTrainer` warns by as well: the sums of the
    weights of both labels should be within a factor of 4/3.
    """
    total = max(1, good + bad)
    bar = (
        f'<div class="bar balance" role="img" aria-label="{good:,} good, {bad:,} bad"><span class="good" '
        f'style="width:{100 * good / total:.1f}%">{good / total:.0%} good</span>'
        f'<span class="bad" style="width:{100 * bad / total:.1f}%">{bad / total:.0%} bad</span></div>'
    )
    fewer, more = sorted((good, bad))
    if not fewer:
        advice = "All answers have the same label; add answers with the other one."
    elif more > _MOST_LOPSIDED * fewer:
        name = "desirable_weight" if good < bad else "undesirable_weight"
        advice = f"Set {name} to about {more / fewer:.2g} on the Train tab, so both labels weigh the same."
    else:
        advice = "Both labels have about the same weight."
    return f"<h3>Balance of labels</h3>{bar}{small(advice)}"

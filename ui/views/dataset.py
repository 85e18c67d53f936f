"""A dataset in figures: its format, the progress of reading it, facts, lengths and preferences."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from loratory.engine.config.objectives import ROW_KINDS
from loratory.engine.data.contract import CheckProgress, DatasetPage, DatasetReport, Histogram, PairLengths
from loratory.engine.data.files import DATA_LABELS
from loratory.engine.data.formats import FORMATS
from loratory.ui.views import html
from loratory.ui.views.html import Column, table

NO_DATASET = html.empty(
    "No dataset yet",
    f"Pick a sample, upload a file, or type a path or a Hub id. Loratory reads {', '.join(DATA_LABELS)}, and detects the "
    "format.",
)
HEADING = "<h2>Training data</h2>"
_ROLE = ' role="status"'
_MOST_LOPSIDED = 4 / 3  # by which the more frequent label may outweigh the other one; see `_balance`


def render_format(source: str, page: DatasetPage) -> str:
    """Return the detected format in one sentence, with the reason."""
    name = FORMATS[page.format].label
    sure = "is" if page.format_sure else "looks like"
    return (
        f'{HEADING}<p class="lead"><b>{escape(html.short_name(source))}</b> {sure} {escape(name)}: '
        f"{escape(page.format_reason)}</p>"
    )


def render_progress(progress: CheckProgress | None, *, fetches: bool = False) -> str:
    """Return the progress of the pass over all rows, or of the download before it."""
    if progress is None:
        return _sentence("Downloading the dataset from the Hub …" if fetches else "Reading all rows …", _ROLE)
    if progress.waiting:
        return _sentence(escape(progress.waiting), _ROLE)
    part = f"{progress.fraction:.0%}, " if progress.fraction is not None else ""
    tokens = f", {html.count(progress.tokens)} tokens" if progress.tokens else ""
    meter = f'<div class="meter"><span style="width:{100 * (progress.fraction or 0):.1f}%"></span></div>'
    return _sentence(f"Reading all rows: {part}{html.plural(progress.rows, 'row')}{tokens}{meter}", _ROLE)


def render_waiting(page: DatasetPage | None) -> str:
    """Return why the rows are not counted yet: that would download a whole dataset from the Hub.

    The first page has the notices that a report would have for all rows.
    """
    how_much = f" ({html.size(page.download_bytes)})" if page is not None and page.download_bytes else ""
    sentence = f"This dataset is on the Hub, and rows are shown as they arrive. Counting and checking them downloads all of it{how_much}."
    return _sentence(sentence) + html.notices(page.notes if page is not None else ())


def render_stopped(progress: CheckProgress | None) -> str:
    """Return the state of a stopped pass."""
    rows = f" after {html.plural(progress.rows, 'row')}" if progress is not None and progress.rows else ""
    return _sentence(f"Reading was stopped{rows}; nothing is counted.", _ROLE)


def _sentence(content: str, attributes: str = "") -> str:
    return f'<div class="sentence num"{attributes}>{content}</div>'


def render_opening(source: str) -> str:
    """Return the message while a dataset is opened."""
    doing = "Reading the first rows and detecting the format."
    return html.empty(f"Opening {html.short_name(source)} …", doing, role="status")


def render_facts(report: DatasetReport) -> str:
    """Return the figures of a finished check."""
    noun = ROW_KINDS[FORMATS[report.format].rows].noun
    figures = [html.count_fact(report.kept, f"{noun} kept", f"{noun}s kept")]
    figures.append(html.count_fact(report.dropped, "row skipped", "rows skipped"))
    if (good := report.desirable) is not None:
        figures += [html.count_fact(good, "good answer"), html.count_fact(report.kept - good, "bad answer")]
    if report.trained_tokens is not None and report.masked_tokens is not None:
        tokens = ((report.trained_tokens, "trained token"), (report.masked_tokens, "masked token"))
        figures += [(html.count(number), html.count_fact(number, noun)[1]) for number, noun in tokens]
    if report.token_lengths is not None:
        figures.append((f"{report.token_lengths.over_max_length:,}", f"truncated at {report.max_length:,}"))
    figures += [html.count_fact(report.duplicates, "duplicate"), (f"{report.held_out_rows:,}", "held out")]
    return html.facts(figures) + render_truncation(report) + html.notices(report.notes)


def render_truncation(report: DatasetReport) -> str:
    """Return an alarm where more than a tail of the rows is cut."""
    lengths = report.token_lengths
    if lengths is None or report.max_length is None:
        return ""
    rows, noun = report.kept, "row"
    if report.sequences is not None and report.sequences != report.kept:
        rows, noun = report.sequences, "sequence"
    sentence = html.truncation(lengths.over_max_length, rows, report.max_length, lengths.max, noun)
    return html.alarm(f"{sentence} {html.field_link('training.max_length', 'Change Max length')}") if sentence else ""


_ROLES = {"?": "not mapped", **{role: role for role in ("user", "assistant", "system", "tool")}, "": "leave out"}


def render_roles(counts: DatasetReport | CheckProgress | None, role_map: Mapping[str, str]) -> str:
    """Return the roles that are unknown or mapped, with what each is read as; the script `role_map` sends the choices."""
    unknown = counts.unknown_roles if counts is not None else {}
    rows = []
    for name in dict.fromkeys((*unknown, *role_map)):
        (number, sample), chosen = unknown.get(name, (0, "")), role_map.get(name, "?")
        options = (
            f'<option value="{role}"{" selected" * (role == chosen)}>{text}</option>' for role, text in _ROLES.items()
        )
        box = f'<select data-name="{escape(name)}" aria-label="{escape(name)} is read as">{"".join(options)}</select>'
        rows.append((escape(name), f"{number:,}" if number else "–", escape(sample), box))
    columns = ("Role", Column.of_numbers("Rows skipped"), Column("A turn", "soft begins"), "Read as")
    return f'{table(columns, rows)}<button type="button" class="go hint">Apply roles</button>' if rows else ""


def render_preferences(report: DatasetReport) -> str:
    """Return the lengths of both answers, or the balance of labels; empty for other rows."""
    parts = ""
    if report.desirable is not None:
        parts += _balance(report.desirable, report.kept - report.desirable)
    if report.prompts is not None and report.held_out_rows:
        parts += _prompts(report)
    lengths = report.pair_lengths
    pair_lengths = _pair_lengths(lengths) if lengths is not None and lengths.pairs else ""
    return (f"<section>{parts}</section>" if parts else "") + pair_lengths


def _prompts(report: DatasetReport) -> str:
    rows = "pairs" if report.pair_lengths is not None else "answers"
    same = f"each of the {report.kept:,} {rows} has its own prompt"
    if report.prompts != report.kept:
        same = f"{html.plural(report.prompts or 0, 'prompt')} in all, whose {rows} are all trained on or all held out"
    return html.small(f"{same[:1].upper()}{same[1:]}. No prompt is on both sides of the split.")


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
    return f"<h3>Balance of labels</h3>{bar}{html.small(advice)}"


def render_lengths(report: DatasetReport) -> str:
    """Return a fold with the row lengths and the line of the cut; its title has the longest, and what is truncated.

    The line is a slider over the histogram. The script `cut_line` says what it cuts while it moves by what each edge of the bins
    would cut: about, as if each sequence ended with its trained tokens.
    """
    lengths, most, rows = report.token_lengths, report.max_length, report.row_lengths
    if lengths is None or most is None:
        return ""
    noun, loss = "row" if report.sequences == report.kept else "sequence", report.lost_trained_tokens or 0
    sentence = f"Half of the {noun}s have up to {lengths.p50:,} tokens, 95% up to {lengths.p95:,}, the longest {lengths.max:,}."
    edges, counts = lengths.histogram.edges, lengths.histogram.counts
    span, width, height = most if edges[-1] <= most <= 1.3 * edges[-1] else edges[-1], 720, 150
    notes = (
        ("cut" if lower >= most else "kept", f"{html.plural(number, noun)} of {lower:,} to {upper - 1:,} tokens")
        for lower, upper, number in _bins(edges, counts)
    )
    bars = _bars(lengths.histogram, width / span, (height, height - 18), notes)
    positions = ((0, "start"), (span / 2, "middle"), (span, "end"))
    ticks = "".join(_text(x * width / span, height + 16, anchor, f"{x:,.0f}") for x, anchor in positions)
    chart = _histogram("histogram", (width, height), f"Histogram of the lengths of {noun}s.", f"{bars}{ticks}")
    pairs = list(zip(rows.tokens, rows.trained, strict=True)) if rows is not None else []
    share = (loss + (report.trained_tokens or 0)) / (sum(trained for _, trained in pairs) or 1)
    cuts = [
        (edge, sum(counts[bin_:]), share * sum(min(trained, max(0, tokens - edge + 1)) for tokens, trained in pairs))
        for bin_, edge in enumerate(edges)
    ]
    loss_text = html.plural(loss, "trained token")
    text = f"{html.plural(lengths.over_max_length, noun)} and {loss_text} cut at {most:,} tokens."
    line = f'<input type="range" max="{max(8, span)}" value="{most}" aria-label="Max length" aria-valuetext="{text}"'
    chart = f'<div class="cut-line">{chart}{line} data-noun="{noun}" data-cuts="{json.dumps(cuts)}">{html.small(text)}</div>'
    figure = f"{lengths.max:,} tokens at most" + (f", {loss_text} truncated" if loss else "")
    return html.fold("Lengths", figure, html.lead(sentence) + chart, "lengths-fold")


def _pair_lengths(lengths: PairLengths) -> str:
    """Return a fold with which answer of the pairs is longer."""
    unit, share = lengths.unit, f"{lengths.chosen_longer / lengths.pairs:.0%}"
    median = f"{html.plural(abs(lengths.median), unit.removesuffix('s'))} {'longer' if lengths.median > 0 else 'shorter'} than"
    sentence = (
        f"The chosen answer is longer in {lengths.chosen_longer:,} of {html.plural(lengths.pairs, 'pair')} "
        f"({share}), the rejected one in {lengths.rejected_longer:,}"
        f"{f', and {lengths.equal:,} are equally long' if lengths.equal else ''}. "
        f"Half of the chosen answers are at most {median if lengths.median else 'as long as'} the rejected one."
    )
    content = f'<div class="beside">{html.lead(sentence)}{_difference_chart(lengths, sentence)}</div>'
    return html.fold("Chosen and rejected", f"the chosen answer is longer in {share} of the pairs", content)


def _difference_chart(lengths: PairLengths, label: str) -> str:
    """Return bars around a line at zero; those of pairs with a longer rejected answer are hatched as well as coloured."""
    edges, counts = lengths.histogram.edges, lengths.histogram.counts
    width, height, top = 400, 92, 16
    scale, last = width / (edges[-1] - edges[0]), edges[-1] - 1
    notes = (
        (
            "cut" if upper <= 0 else "even" if lower <= 0 else "kept",
            f"{html.plural(pairs, 'pair')}: chosen answer {lower:+,} to {upper - 1:+,} {lengths.unit}",
        )
        for lower, upper, pairs in _bins(edges, counts)
    )
    zero = -edges[0] * scale + scale / 2  # the middle of the bin that holds 0
    texts = (
        (0, height + 16, "start", f"{-last:+,} {lengths.unit}"),
        (zero, height + 16, "middle", "0"),
        (width, height + 16, "end", f"{last:+,}"),
        (zero - 10, 11, "end", "rejected is longer"),
        (zero + 10, 11, "start", "chosen is longer"),
    )
    bars = _bars(lengths.histogram, scale, (height, height - top - 4), notes)
    line = f'<line class="limit" x1="{zero:.1f}" x2="{zero:.1f}" y1="{top}" y2="{height}"/>'
    labels = "".join(_text(*text) for text in texts)
    return _histogram("histogram differences", (width, height), label, f"{bars}{line}{labels}")


def _bins(edges: Sequence[int], counts: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    return zip(edges, edges[1:], counts, strict=False)


def _bars(histogram: Histogram, scale: float, heights: tuple[int, int], notes: Iterable[tuple[str, str]]) -> str:
    """Return a bar for each bin; `heights` are of the floor and of the highest bar, `notes` class and title of each."""
    bars, (floor, highest), edges, counts = "", heights, histogram.edges, histogram.counts
    for (lower, upper, rows), (css, title) in zip(_bins(edges, counts), notes, strict=False):
        height, width = highest * rows / max(counts), max(1.0, (upper - lower) * scale - 1)
        bars += (
            f'<rect class="{css}" x="{(lower - edges[0]) * scale:.1f}" y="{floor - height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}"><title>{escape(title)}</title></rect>'
        )
    return bars


def _text(x: float, y: int, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _histogram(css: str, size: tuple[int, int], label: str, content: str) -> str:
    width, height = size
    return (
        f'<svg class="{css}" viewBox="0 0 {width} {height + 22}" role="img" aria-label="{escape(label)}">'
        '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line x1="0" y1="0" x2="0" y2="5" class="hatching"/></pattern></defs>'
        f'<line class="floor" x1="0" x2="{width}" y1="{height}" y2="{height}"/>{content}</svg>'
    )

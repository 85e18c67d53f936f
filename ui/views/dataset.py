"""What a dataset is, in figures and tables: facts, lengths, and every row that is left out."""

from html import escape

from engine.data.page import DatasetPage, PageRow
from engine.data.report import CheckProgress, DatasetReport
from ui.pick import pickable
from ui.views.length_histogram import render_length_histogram
from ui.views.quantities import count, plural
from ui.views.token_mask import render_conversation, render_tokens

FORMAT_NAMES = {
    "alpaca": "Alpaca",
    "sharegpt": "ShareGPT",
    "messages": "messages",
    "prompt_completion": "prompt and completion",
    "text": "plain text",
}


def render_format(source: str, page: DatasetPage) -> str:
    """One sentence: what the file is, and why we think so."""
    name = FORMAT_NAMES.get(page.format, page.format)
    sure = "is" if page.format_sure else "looks like"
    short = source.rstrip("/").rsplit("/", 1)[-1]
    return (
        f'<h2>What the model will learn from</h2><p class="lead"><b>{escape(short)}</b> {sure} {escape(name)}: '
        f"{escape(page.format_reason)}</p>"
    )


def render_row(page: DatasetPage, as_tokens: bool) -> str:
    """The one row of a page, exactly as training will see it, or why it is left out."""
    if not page.rows:
        return '<div class="empty"><b>No such row</b>Choose a smaller number.</div>'
    row = page.rows[0]
    where = f"Row {row.row:,}" + (f" of {page.total_rows:,}, counted from 0" if page.total_rows else "")
    if row.line is not None:
        where += f", line {row.line:,}"
    if row.problem is not None:
        return (
            f'<p class="lead num">{where}, left out.</p><div class="trouble"><b>This row teaches nothing</b>'
            f"{escape(row.problem)}</div><pre class='log'>{escape(row.raw)}</pre>"
        )
    notices = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in row.notices)
    if as_tokens and row.sequences:
        lead = (
            f"{where}, exactly as training will see it. Underlined is what the model learns to say; grey it only reads."
        )
        return f'<p class="lead num">{lead}</p>{notices}{render_tokens(row)}'
    lead = f"{where}, as a conversation." if row.conversation is not None else f"{where}, as text."
    missing = "" if row.sequences or not as_tokens else " Choose a model to see its tokens."
    return f'<p class="lead num">{lead}{missing}</p>{notices}{render_conversation(row)}'


def row_summary(row: PageRow) -> str:
    """How a row begins, for lists."""
    return row.raw[:90]


def render_progress(progress: CheckProgress | None) -> str:
    """How far the pass over all rows has come."""
    if progress is None:
        return '<div class="sentence" role="status">Reading every row …</div>'
    part = f"{progress.fraction:.0%}, " if progress.fraction is not None else ""
    tokens = f", {count(progress.tokens)} tokens" if progress.tokens else ""
    return (
        f'<div class="sentence num" role="status">Reading every row: {part}{plural(progress.rows, "row")}{tokens}'
        f'<div class="meter"><span style="width:{100 * (progress.fraction or 0):.1f}%"></span></div></div>'
    )


def render_facts(report: DatasetReport) -> str:
    """The figures of a finished check."""
    facts = [(f"{report.kept:,}", "rows kept"), (f"{report.dropped:,}", "rows left out")]
    if report.trained_tokens is not None and report.masked_tokens is not None:
        facts.append((count(report.trained_tokens), "tokens learned"))
        facts.append((count(report.masked_tokens), "tokens only read"))
    if report.token_lengths is not None:
        facts.append((f"{report.token_lengths.over_max_length:,}", f"rows cut at {report.max_length:,}"))
    facts.append((f"{report.duplicates:,}", "exact duplicates"))
    facts.append((f"{report.held_out_rows:,}", "rows held out"))
    figures = "".join(f"<div><b>{figure}</b>{words}</div>" for figure, words in facts)
    notes = "".join(f'<p class="notice">{escape(note)}</p>' for note in report.notes)
    return f'<div class="facts">{figures}</div>{notes}'


def render_jumps(report: DatasetReport) -> str:
    """Rows worth a look, each one click away: the longest, the shortest, those that repeat, those that are odd."""
    odd = tuple(notice.row for notice in report.notices)
    groups = (
        ("longest", report.longest_rows),
        ("shortest", report.shortest_rows),
        ("repeating an earlier one", report.duplicate_rows),
        ("with something odd", odd),
    )
    parts = []
    for words, rows in groups:
        if rows:
            links = ", ".join(
                f'<span class="jump" role="button" data-pick="{row}" tabindex="0">{row:,}</span>' for row in rows[:6]
            )
            parts.append(f"{words}: {links}{' …' if len(rows) > 6 else ''}")
    return f'<p class="small num">Rows worth a look. {"; ".join(parts).capitalize()}.</p>' if parts else ""


def render_lengths(report: DatasetReport) -> str:
    """How long the rows are, and what the cut takes away."""
    lengths = report.token_lengths
    if lengths is None or report.max_length is None:
        return ""
    lost = ""
    if report.lost_trained_tokens:
        lost = f" The cut takes {plural(report.lost_trained_tokens, 'token')} away that would have been learned."
    chart = render_length_histogram(lengths.histogram.edges, lengths.histogram.counts, report.max_length)
    return (
        f'<h3>Lengths</h3><p class="lead num">Half of the rows have up to {lengths.p50:,} tokens, 95% up to '
        f"{lengths.p95:,}, the longest {lengths.max:,}.{lost}</p>{chart}"
    )


def render_problems(report: DatasetReport, *, pickable_rows: bool = True) -> str:
    """Every row that is left out, with its line and the reason.

    Args:
        report: Of a finished check.
        pickable_rows: Whether picking a row shows it, as beside the rows themselves.
    """
    if not report.problems:
        return "" if report.dropped else '<p class="small">No row is left out.</p>'
    rows = "".join(
        f"<tr {pickable(str(problem.row)) if pickable_rows else ''}><td class='r'>{problem.row:,}</td>"
        f"<td class='r'>{'–' if problem.line is None else f'{problem.line:,}'}</td>"
        f"<td>{escape(problem.problem)}</td><td class='soft'>{escape(problem.sample[:90])}</td></tr>"
        for problem in report.problems[:200]
    )
    listed = min(len(report.problems), 200)
    more = (
        f'<p class="small">The first {listed:,} of {report.dropped:,} are listed.</p>'
        if report.dropped > listed
        else ""
    )
    return (
        f'<h3>{plural(report.dropped, "row")} left out</h3><div class="scroll tall"><table class="plain"><thead><tr>'
        '<th class="r">Row</th><th class="r">Line</th><th>Left out because</th><th>It begins</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}"
    )

"""What a dataset is, in figures and tables: facts, lengths, and every row that is left out."""

from html import escape

from engine.data.contract import CheckProgress, DatasetPage, DatasetReport
from engine.data.formats import FORMATS
from ui.views.length_histogram import render_length_histogram
from ui.views.notices import render_notices
from ui.views.quantities import count, plural, size
from ui.views.row_lists import problem_row
from ui.views.token_mask import render_conversation, render_tokens


def render_format(source: str, page: DatasetPage) -> str:
    """One sentence: what the file is, and why we think so."""
    name = FORMATS[page.format].label
    sure = "is" if page.format_sure else "looks like"
    return (
        f'<h2>What the model will learn from</h2><p class="lead"><b>{escape(short_name(source))}</b> {sure} {escape(name)}: '
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
    notices = render_notices(row.notices)
    if as_tokens and row.sequences:
        lead = (
            f"{where}, exactly as training will see it. Underlined is what the model learns to say; grey it only reads."
        )
        return f'<p class="lead num">{lead}</p>{notices}{render_tokens(row)}'
    lead = f"{where}, as a conversation." if row.conversation is not None else f"{where}, as text."
    missing = (
        ""
        if row.sequences or not as_tokens
        else " Its tokens appear once a model is chosen, and its tokenizer is here."
    )
    return f'<p class="lead num">{lead}{missing}</p>{notices}{render_conversation(row)}'


def render_progress(progress: CheckProgress | None, *, fetches: bool = False) -> str:
    """How far the pass over all rows has come.

    Args:
        progress: None before the first row.
        fetches: Whether the dataset is fetched from the Hub before that.
    """
    if progress is None:
        words = "Fetching the dataset from the Hub" if fetches else "Reading every row"
        return f'<div class="sentence" role="status">{words} …</div>'
    part = f"{progress.fraction:.0%}, " if progress.fraction is not None else ""
    tokens = f", {count(progress.tokens)} tokens" if progress.tokens else ""
    return (
        f'<div class="sentence num" role="status">Reading every row: {part}{plural(progress.rows, "row")}{tokens}'
        f'<div class="meter"><span style="width:{100 * (progress.fraction or 0):.1f}%"></span></div></div>'
    )


def render_waiting(page: DatasetPage | None) -> str:
    """Why nothing is counted yet: reading every row of a dataset on the Hub fetches all of it.

    Args:
        page: What is seen of the dataset meanwhile; it says what a report would say of all rows.
    """
    how_much = f", {size(page.download_bytes)}" if page is not None and page.download_bytes else ""
    return (
        '<div class="sentence num">This dataset lies on the Hub, and its rows are shown as they arrive. To count them and '
        f"check each, all of it is fetched first{how_much}.</div>{render_notices(page.notes if page is not None else ())}"
    )


def render_stopped(progress: CheckProgress | None) -> str:
    """A pass that a person ended."""
    rows = f" after {plural(progress.rows, 'row')}" if progress is not None and progress.rows else ""
    return f'<div class="sentence num" role="status">Reading was stopped{rows}; nothing is counted.</div>'


def render_opening(source: str) -> str:
    """What stands there while a dataset is being opened."""
    return (
        f'<div class="empty" role="status"><b>Opening {escape(short_name(source))} …</b>Its first rows are read, and the '
        "format is found out.</div>"
    )


def short_name(source: str) -> str:
    """The last part of a path or a Hub id, for headings."""
    return source.rstrip("/").rsplit("/", 1)[-1]


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
    return f'<div class="facts">{figures}</div>{render_notices(report.notes)}'


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
    rows = "".join(problem_row(problem, picks=pickable_rows) for problem in report.problems[:200])
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

"""A dataset in figures and tables: facts, lengths, skipped rows, and one row as the model reads it."""

from collections.abc import Container, Sequence
from html import escape

from engine.config.objectives import ROW_KINDS
from engine.data.contract import CheckProgress, DatasetPage, DatasetReport, PageRow, SequenceView, TokenSpan
from engine.data.conversation import Message
from engine.data.files import DATA_LABELS
from engine.data.formats import FORMATS
from ui.views.html import (
    Column,
    alarm,
    count,
    empty,
    facts,
    field_link,
    fold,
    notices,
    plural,
    short_name,
    size,
    small,
    table,
    truncation,
)
from ui.views.row_lists import PROBLEM_COLUMNS, problem_row

NO_DATASET = empty(
    "No dataset yet",
    f"Pick a sample, upload a file, or type a path or a Hub id. Loratory reads {', '.join(DATA_LABELS)}, and detects the "
    "format.",
)
HEADING = "<h2>Training data</h2>"
_ROLE = ' role="status"'
_WIDTH, _HEIGHT, _BOTTOM = 720, 150, 22  # of the histogram
# Characters of a row that are shown: browsers need too long to lay out more.
_SHOWN_CHARACTERS = 40_000
_TRAINED = " · trained"
_SIDES = 2  # of a pair


def render_format(source: str, page: DatasetPage) -> str:
    """Return the detected format in one sentence, with the reason."""
    name = FORMATS[page.format].label
    sure = "is" if page.format_sure else "looks like"
    return (
        f'{HEADING}<p class="lead"><b>{escape(short_name(source))}</b> {sure} {escape(name)}: '
        f"{escape(page.format_reason)}</p>"
    )


def render_row(page: DatasetPage, as_tokens: bool) -> str:
    """Return the one row of a page exactly as training reads it, or why it is skipped."""
    if not page.rows:
        return empty("No such row", "Choose a smaller number.")
    row = page.rows[0]
    where = f"Row {row.row + 1:,}" + (f" of {page.total_rows:,}" if page.total_rows else "")
    if row.line is not None:
        where += f", line {row.line:,}"
    if row.problem is not None:
        problem = f'<div class="trouble"><b>Row skipped: nothing to train on</b>{escape(row.problem)}</div>'
        return f"{_lead(f'{where}, skipped.')}{problem}<pre class='log'>{escape(row.raw)}</pre>"
    if row.desirable is not None:
        where += f", rated {'good' if row.desirable else 'bad'}"
    if as_tokens and row.sequences:
        words = f"{where}, exactly as in training. Underlined tokens are trained; grey tokens are context."
        words += " Differences between the two answers are highlighted." if row.rejected else ""
        return f"{_lead(words)}{notices(row.notices)}{render_tokens(row)}"
    what = "a pair" if row.rejected else "a conversation"
    words = f"{where}, as {what}." if row.conversation is not None else f"{where}, as text."
    if as_tokens and not row.sequences:
        words += " Tokens appear once a model is chosen and its tokenizer is downloaded."
    return f"{_lead(words)}{notices(row.notices)}{render_conversation(row)}"


def _lead(text: str) -> str:
    return f'<p class="lead num">{escape(text)}</p>'


def render_progress(progress: CheckProgress | None, *, fetches: bool = False) -> str:
    """Return the progress of the pass over all rows, or of the download before it."""
    if progress is None:
        return _sentence("Downloading the dataset from the Hub …" if fetches else "Reading all rows …", _ROLE)
    if progress.waiting:
        return _sentence(escape(progress.waiting), _ROLE)
    part = f"{progress.fraction:.0%}, " if progress.fraction is not None else ""
    tokens = f", {count(progress.tokens)} tokens" if progress.tokens else ""
    meter = f'<div class="meter"><span style="width:{100 * (progress.fraction or 0):.1f}%"></span></div>'
    return _sentence(f"Reading all rows: {part}{plural(progress.rows, 'row')}{tokens}{meter}", _ROLE)


def render_waiting(page: DatasetPage | None) -> str:
    """Return why the rows are not counted yet: that would download a whole dataset from the Hub.

    The first page has the notices that a report would have for all rows.
    """
    how_much = f" ({size(page.download_bytes)})" if page is not None and page.download_bytes else ""
    words = f"This dataset is on the Hub, and rows are shown as they arrive. Counting and checking them downloads all of it{how_much}."
    return _sentence(words) + notices(page.notes if page is not None else ())


def render_stopped(progress: CheckProgress | None) -> str:
    """Return the state of a stopped pass."""
    rows = f" after {plural(progress.rows, 'row')}" if progress is not None and progress.rows else ""
    return _sentence(f"Reading was stopped{rows}; nothing is counted.", _ROLE)


def _sentence(html: str, attributes: str = "") -> str:
    return f'<div class="sentence num"{attributes}>{html}</div>'


def render_opening(source: str) -> str:
    """Return the message while a dataset is opened."""
    return empty(f"Opening {short_name(source)} …", "Reading the first rows and detecting the format.", role="status")


def render_facts(report: DatasetReport) -> str:
    """Return the figures of a finished check."""
    noun = ROW_KINDS[FORMATS[report.format].rows].noun
    figures = [_counted(report.kept, noun, " kept"), _counted(report.dropped, "row", " skipped")]
    if report.desirable is not None:
        figures += [
            _counted(report.desirable, "good answer"),
            _counted(report.kept - report.desirable, "bad answer"),
        ]
    if report.trained_tokens is not None and report.masked_tokens is not None:
        tokens = ((report.trained_tokens, "trained token"), (report.masked_tokens, "masked token"))
        figures += [(count(number), _counted(number, noun)[1]) for number, noun in tokens]
    if report.token_lengths is not None:
        figures.append((f"{report.token_lengths.over_max_length:,}", f"truncated at {report.max_length:,}"))
    figures += [_counted(report.duplicates, "duplicate"), (f"{report.held_out_rows:,}", "held out")]
    return facts(figures) + render_truncation(report) + notices(report.notes)


def render_truncation(report: DatasetReport) -> str:
    """Return an alarm where more than a tail of the rows is cut."""
    lengths = report.token_lengths
    if lengths is None or report.max_length is None:
        return ""
    rows, noun = report.kept, "row"
    if report.sequences is not None and report.sequences != report.kept:
        rows, noun = report.sequences, "sequence"
    sentence = truncation(lengths.over_max_length, rows, report.max_length, lengths.max, noun)
    return alarm(f"{sentence} {field_link('training.max_length', 'Change Max length')}") if sentence else ""


def _counted(number: int, noun: str, after: str = "") -> tuple[str, str]:
    figure, _, words = plural(number, noun).partition(" ")
    return figure, words + after


def render_lengths(report: DatasetReport) -> str:
    """Return a fold with the row lengths and truncated trained tokens; its title has the longest."""
    lengths = report.token_lengths
    if lengths is None or report.max_length is None:
        return ""
    lost_words = (
        f" {plural(report.lost_trained_tokens, 'trained token')} truncated." if report.lost_trained_tokens else ""
    )
    what = "rows" if report.sequences == report.kept else "sequences"
    words = f"Half of the {what} have up to {lengths.p50:,} tokens, 95% up to {lengths.p95:,}, the longest {lengths.max:,}.{lost_words}"
    chart = render_length_histogram(lengths.histogram.edges, lengths.histogram.counts, report.max_length)
    return fold(
        "Lengths",
        f"{lengths.max:,} tokens at most{f',{lost_words}' if lost_words else ''}".rstrip("."),
        _lead(words) + chart,
    )


def render_length_histogram(edges: Sequence[int], counts: Sequence[int], max_length: int) -> str:
    """Return an SVG histogram; bins beyond the cut are also hatched, and the cut is labelled.

    Edges are in tokens, one more than counts; rows are cut at `max_length` tokens.
    """
    if not counts or max(counts) == 0:
        return ""
    span = max_length if edges[-1] <= max_length <= 1.3 * edges[-1] else edges[-1] or 1
    scale = _WIDTH / span
    bars = []
    for lower, upper, rows in zip(edges, edges[1:], counts, strict=False):
        height = (_HEIGHT - 18) * rows / max(counts)
        x, width = lower * scale, max(1.0, (upper - lower) * scale - 1)
        css = "cut" if lower >= max_length else "kept"
        title = f"{plural(rows, 'row')} of {lower:,} to {upper - 1:,} tokens"
        bars.append(
            f'<rect class="{css}" x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )
    cut = ""
    if max_length <= span:
        x = max_length * scale
        anchor, offset = ("end", -6) if x > _WIDTH * 0.7 else ("start", 6)
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


def render_problems(report: DatasetReport) -> str:
    """Return the skipped rows with lines and reasons."""
    if not report.problems:
        return ""
    problems = report.problems[:200]
    columns = [*PROBLEM_COLUMNS, Column("Reason"), Column("Beginning", "soft begins")]
    rows = (problem_row(problem, picks=False) for problem in problems)
    more = f"The first {len(problems):,} of {report.dropped:,} are listed." if report.dropped > len(problems) else ""
    table_html = table(columns, rows, scrolls="scroll tall")
    return f"<h3>{plural(report.dropped, 'row')} skipped</h3>{table_html}{small(more) if more else ''}"


def render_tokens(row: PageRow) -> str:
    """Return the training sequences of a row; control tokens have a frame, trained text is underlined and tinted."""
    count = len(row.sequences)
    if row.rejected and count == _SIDES:
        return _pair(*row.sequences)
    parts = []
    for number, sequence in enumerate(row.sequences, start=1):
        if count > 1:
            parts.append(f'<p class="small">Sequence {number} of {count}: the template needs one for each answer.</p>')
        parts.append(_sequence(sequence))
    return "".join(parts)


def _pair(chosen: SequenceView, rejected: SequenceView) -> str:
    """Return the shared prompt, then both answers side by side."""
    shared, place = chosen.shared_tokens, 0
    before: list[TokenSpan] = []
    while place < shared and len(before) < len(chosen.spans):
        before.append(chosen.spans[len(before)])
        place += before[-1].tokens
    sides = "".join(
        f'<section class="{name.lower()}"><h3>{name}</h3>{_sequence(side, f"{name} answer", len(before))}</section>'
        for name, side in (("Chosen", chosen), ("Rejected", rejected))
    )
    prompt = (
        f'<p class="small num">Shared prompt of {shared:,} tokens.</p>{_tokens(before, "What both answers follow")}'
    )
    return f'<div class="pair">{prompt if before else ""}<div class="sides">{sides}</div></div>'


def _sequence(sequence: SequenceView, name: str = "The row", first: int = 0) -> str:
    """Return the spans of a sequence from `first` on, and its length."""
    words = f"{sequence.tokens:,} tokens, {sequence.trained_tokens:,} of them trained"
    if sequence.uncut_tokens > sequence.tokens:
        words += f"; {sequence.uncut_tokens - sequence.tokens:,} truncated at {sequence.tokens:,}, struck through"
    characters = sum(len(span.text) for span in sequence.spans)
    if characters > _SHOWN_CHARACTERS or sum(span.tokens for span in sequence.spans) < sequence.tokens:
        words += "; only the beginning is shown"
    cut = f'<span class="cut">{escape(sequence.cut_text)}</span>' if sequence.cut_text else ""
    return f'{_tokens(sequence.spans[first:], name, cut)}<p class="small num">{words}.</p>'


def _tokens(spans: Sequence[TokenSpan], name: str, after: str = "") -> str:
    parts, characters = [], 0
    for span in spans:
        parts.append(_span(span, _SHOWN_CHARACTERS - characters))
        characters += len(span.text)
        if characters >= _SHOWN_CHARACTERS:
            after = ""
            break
    return (
        f'<div class="tokens edges" tabindex="0" role="region" aria-label="{name}, token by token">'
        f"{''.join(parts)}{after}</div>"
    )


def _span(span: TokenSpan, room: int) -> str:
    """Return text of one kind split into tokens, with all ids in one attribute, as long rows have many."""
    css = f"{'trained' if span.trained else 'masked'}{' special' if span.special else ''}"
    css += " differs" if span.differs else ""
    label = "trained" if span.trained else "masked"
    text = span.text[:room]
    if span.special or not span.lengths:
        which = f", token {span.ids[0]}" if span.ids else f": {plural(span.tokens, 'token')}"
        return f'<span class="{css}" title="{label}{which}">{escape(text)}</span>'
    pieces, start = [], 0
    for length in span.lengths:
        if start >= len(text):
            break
        pieces.append(f"<i>{escape(text[start : start + length])}</i>")
        start += length
    ids = " ".join(str(token) for token in span.ids[: len(pieces)])
    return f'<span class="{css}" data-label="{label}" data-ids="{ids}">{"".join(pieces)}</span>'


def render_conversation(row: PageRow) -> str:
    """Return a row as a conversation: turn by turn, with tools and their results."""
    if row.conversation is None:
        text = escape((row.text or row.raw)[:_SHOWN_CHARACTERS])
        return f'<div class="turn learned"><span class="role">plain text{_TRAINED}</span>{text}</div>'
    messages, start = row.conversation.messages, row.conversation.completion_start
    tools = row.conversation.tools
    tools_html = (
        f'<p class="small">{plural(len(tools), "tool is", "tools are")} offered to the assistant.</p>' if tools else ""
    )
    if not row.rejected or start is None:
        return tools_html + _turns(messages, row.trained_turns)
    answers = (("Chosen", messages[start:]), ("Rejected", row.rejected))
    sides = "".join(
        f'<section class="{name.lower()}"><h3>{name}</h3>{_turns(side, _answers_in(side))}</section>'
        for name, side in answers
    )
    return f'{tools_html}{_turns(messages[:start], ())}<div class="pair"><div class="sides">{sides}</div></div>'


def _answers_in(turns: Sequence[Message]) -> frozenset[int]:
    return frozenset(number for number, turn in enumerate(turns) if turn.role == "assistant" and not turn.is_empty)


def _turns(messages: Sequence[Message], trained_turns: Container[int]) -> str:
    turns = []
    for number, message in enumerate(messages):
        is_trained = number in trained_turns
        body = escape(message.content[:_SHOWN_CHARACTERS])
        if message.reasoning:
            body = f'<span class="small">thinks: {escape(message.reasoning[:_SHOWN_CHARACTERS])}</span>\n{body}'
        for call in message.tool_calls:
            body += f"\n<code>calls {escape(call.name)}({escape(str(call.arguments)[:2000])})</code>"
        css, word = (" learned", _TRAINED) if is_trained else ("", "")
        turns.append(f'<div class="turn{css}"><span class="role">{escape(message.role)}{word}</span>{body}</div>')
    return "".join(turns)

"""Rows of a dataset: one as training reads it, and paged lists of them: skipped, with warnings, longest, duplicates."""

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from typing import Literal, get_args

from loratory.engine.data.contract import (
    DatasetPage,
    DatasetReport,
    ImageView,
    PageRow,
    RowProblem,
    SequenceView,
    TokenSpan,
)
from loratory.engine.data.conversation import IMAGE_MARK, Message
from loratory.ui.views import html

Listing = Literal["all", "left_out", "odd", "longest", "shortest", "length_gap", "duplicates", "contradictions"]
LISTINGS: tuple[Listing, ...] = get_args(Listing)
PAGE_ROWS = 15
_COLUMNS = (html.Column.of_numbers("Row"), html.Column.of_numbers("Line"))
_BEGINNING = html.Column("Beginning", "soft begins")
_MOST_PROBLEMS = 200  # of those that a run skipped
# Characters of a row that are shown: browsers need too long to lay out more.
_SHOWN_CHARACTERS = 40_000
_TRAINED = " · trained"

_KIND_WORDS = {
    "not_json": "invalid JSON",
    "not_utf8": "not UTF-8",
    "too_deep": "nested too deeply",
    "bad_text": "broken characters",
    "bad_number": "NaN or infinity",
    "weight": "weight other than 0 or 1",
    "csv": "malformed CSV",
    "empty": "empty part",
    "nothing_to_learn": "nothing to train on",
    "tools": "inconsistent tool calls",
    "template": "rejected by the chat template",
    "template_leaves_out": "text dropped by the template",
    "special_token": "special tokens in the text",
    "cut_away": "truncated whole",
    "image": "unusable image",
    "unanswered": "last turn unanswered",
    "order": "turns out of order",
    "pair": "incomplete pair",
    "other_prompt": "prompts differ",
    "white_space": "answers differ in white space only",
    "label": "label neither true nor false",
}


def _listings(report: DatasetReport) -> dict[Listing, tuple[str, Sequence[int]]]:
    """Return the label and the row numbers of each list but that of all rows."""
    odd = list(dict.fromkeys(notice.row for notice in report.notices))
    more = "" if len(report.notices) == sum(report.notice_counts.values()) else "+"
    return {
        "left_out": (f"skipped ({report.dropped:,})", [problem.row for problem in report.problems]),
        "odd": (f"kept with warnings ({len(odd):,}{more})", odd),
        "longest": ("longest", report.longest_rows),
        "shortest": ("shortest", report.shortest_rows),
        "length_gap": ("largest difference in length", report.length_gap_rows),
        "duplicates": (f"duplicates ({report.duplicates:,})", report.duplicate_rows),
        "contradictions": (f"contradictory ({report.contradictions:,})", report.contradicting_rows),
    }


def rows_of(report: DatasetReport, listing: Listing) -> tuple[int, ...]:
    """Return the row numbers of a list, in its order; empty for `all`."""
    _, rows = _listings(report).get(listing, ("", ()))
    return tuple(rows)


def listing_choices(report: DatasetReport | None) -> list[tuple[str, str]]:
    """Return the lists that have rows, with their counts."""
    listings = _listings(report) if report is not None else {}
    return [("all rows", "all"), *((label, listing) for listing, (label, rows) in listings.items() if rows)]


def render_counts(report: DatasetReport) -> str:
    """Return the number of rows by problem and by warning."""
    skipped_html = _kinds(report.problem_counts, "left_out", f"{html.plural(report.dropped, 'row')} skipped")
    return skipped_html + _kinds(report.notice_counts, "odd", "Kept with warnings")


def render_problem_list(problems: Sequence[RowProblem], page: html.ListPage, reason: str) -> str:
    """Return a page of rows with the problem of each; `reason` is the head of its column."""
    listed_problems = problems[page.start : page.end]
    rows = (html.Row(_problem(problem), html.pickable(str(problem.row), chosen=None)) for problem in listed_problems)
    return _render_rows(html.Column(reason, "why"), rows, page)


def render_problems(report: DatasetReport) -> str:
    """Return the skipped rows with lines and reasons."""
    if not report.problems:
        return ""
    problems = report.problems[:_MOST_PROBLEMS]
    more = f"The first {len(problems):,} of {report.dropped:,} are listed." if report.dropped > len(problems) else ""
    problem_table = html.table([*_COLUMNS, "Reason", _BEGINNING], map(_problem, problems), scrolls="scroll tall")
    return f"<h3>{html.plural(report.dropped, 'row')} skipped</h3>{problem_table}{html.small(more) if more else ''}"


def render_row_list(rows: Sequence[PageRow], page: html.ListPage) -> str:
    """Return a page of rows with their lengths."""
    lines = []
    for row in rows:
        tokens = f"{sum(sequence.uncut_tokens for sequence in row.sequences):,}" if row.sequences else "–"
        cells = (f"{row.row + 1:,}", _line(row.line), tokens, escape(row.raw[:160]))
        lines.append(html.Row(cells, html.pickable(str(row.row), chosen=None)))
    return _render_rows(html.Column.of_numbers("Tokens"), lines, page)


def _problem(problem: RowProblem) -> tuple[str, ...]:
    return f"{problem.row + 1:,}", _line(problem.line), escape(problem.problem), escape(problem.sample[:160])


def _kinds(counts: Mapping[str, int], listing: str, title: str) -> str:
    if not counts:
        return ""
    names = {kind: escape(_KIND_WORDS.get(kind, kind.replace("_", " "))) for kind in counts}
    by_count = sorted(counts.items(), key=lambda item: -item[1])
    kinds = "".join(f"<li><b>{count:,}</b> {names[kind]}</li>" for kind, count in by_count)
    return f'<div class="kinds num">{html.pick_button(f"show:{listing}", title)}<ul>{kinds}</ul></div>'


def _render_rows(column: html.Column, rows: Iterable[html.Row], page: html.ListPage) -> str:
    row_table = html.table([*_COLUMNS, column, _BEGINNING], rows, css="listed")
    return row_table + (page.pager("listed row") if page.rows > page.size else "")


def _line(line: int | None) -> str:
    return "–" if line is None else f"{line:,}"


def render_row(page: DatasetPage, as_tokens: bool) -> str:
    """Return the one row of a page exactly as training reads it, or why it is skipped."""
    if not page.rows:
        return html.empty("No such row", "Choose a smaller number.")
    row = page.rows[0]
    where = f"Row {row.row + 1:,}" + (f" of {page.total_rows:,}" if page.total_rows else "")
    if row.line is not None:
        where += f", line {row.line:,}"
    if row.problem is not None:
        problem = f'<div class="trouble"><b>Row skipped: nothing to train on</b>{escape(row.problem)}</div>'
        return f"{html.lead(f'{where}, skipped.')}{problem}<pre class='log'>{escape(row.raw)}</pre>"
    if row.desirable is not None:
        where += f", rated {'good' if row.desirable else 'bad'}"
    if as_tokens and row.sequences:
        sentence = f"{where}, exactly as in training. Underlined tokens are trained; grey tokens are context."
        sentence += " Differences between the two answers are highlighted." if row.rejected else ""
        return f"{html.lead(sentence)}{html.notices(row.notices)}{render_tokens(row)}{_pictures(row)}"
    what = "a pair" if row.rejected else "a conversation"
    sentence = f"{where}, as {what}." if row.conversation is not None else f"{where}, as text."
    if as_tokens and not row.sequences:
        sentence += " Tokens appear once a model is chosen and its tokenizer is downloaded."
    return f"{html.lead(sentence)}{html.notices(row.notices)}{render_conversation(row)}"


def render_tokens(row: PageRow) -> str:
    """Return the training sequences of a row; control tokens have a frame, trained text is underlined and tinted.

    Those of a pair have their shared prompt once, then both answers side by side.
    """
    count = len(row.sequences)
    if not row.rejected or count != 2:
        head = "Sequence {} of {}: the template needs one for each answer."
        heads = (html.small(head.format(number, count)) if count > 1 else "" for number in range(1, count + 1))
        return "".join(head + _sequence(sequence) for head, sequence in zip(heads, row.sequences, strict=True))
    shared, spans = row.sequences[0].shared_tokens, row.sequences[0].spans
    starts = itertools.accumulate((span.tokens for span in spans), initial=0)
    before = [span for span, start in zip(spans, starts, strict=False) if start < shared]
    answers = zip(("Chosen", "Rejected"), row.sequences, strict=True)
    sides = _sides((name, _sequence(side, f"{name} answer", len(before))) for name, side in answers)
    lead_html = f'<p class="small num">Shared prompt of {shared:,} tokens.</p>'
    prompt = lead_html + _tokens(before, "What both answers follow") if before else ""
    return f'<div class="pair">{prompt}{sides}</div>'


def _sides(answers: Iterable[tuple[str, str]]) -> str:
    """Return both answers of a pair side by side, by name."""
    sections = (f'<section class="{name.lower()}"><h3>{name}</h3>{answer}</section>' for name, answer in answers)
    return f'<div class="sides">{"".join(sections)}</div>'


def _sequence(sequence: SequenceView, name: str = "The row", first: int = 0) -> str:
    """Return the spans of a sequence from `first` on, and its length."""
    lengths = f"{sequence.tokens:,} tokens, {sequence.trained_tokens:,} of them trained"
    if sequence.uncut_tokens > sequence.tokens:
        lengths += f"; {sequence.uncut_tokens - sequence.tokens:,} truncated at {sequence.tokens:,}, struck through"
    characters = sum(len(span.text) for span in sequence.spans)
    if characters > _SHOWN_CHARACTERS or sum(span.tokens for span in sequence.spans) < sequence.tokens:
        lengths += "; only the beginning is shown"
    cut = f'<span class="cut">{escape(sequence.cut_text)}</span>' if sequence.cut_text else ""
    return f'{_tokens(sequence.spans[first:], name, cut)}<p class="small num">{lengths}.</p>'


def _tokens(spans: Sequence[TokenSpan], name: str, after: str = "") -> str:
    parts, characters = [], 0
    for span in spans:
        parts.append(_span(span, _SHOWN_CHARACTERS - characters))
        characters += len(span.text)
        if characters >= _SHOWN_CHARACTERS:
            after = ""
            break
    region = f'tabindex="0" role="region" aria-label="{name}, token by token"'
    return f'<div class="tokens edges" {region}>{"".join(parts)}{after}</div>'


def _span(span: TokenSpan, room: int) -> str:
    """Return text of one kind split into tokens, with all ids in one attribute, as long rows have many."""
    css = f"{'trained' if span.trained else 'masked'}{' special' if span.special else ''}"
    css += " differs" if span.differs else ""
    label = "trained" if span.trained else "masked"
    if span.image is not None:
        return (
            f'<span class="{css} special" title="{label}">▣ image {span.image + 1}: {span.tokens:,} image tokens</span>'
        )
    text = span.text[:room]
    if span.special or not span.lengths:
        which = f", token {span.ids[0]}" if span.ids else f": {html.plural(span.tokens, 'token')}"
        return f'<span class="{css}" title="{label}{which}">{escape(text)}</span>'
    starts = zip(itertools.accumulate(span.lengths, initial=0), span.lengths, strict=False)
    pieces = [f"<i>{escape(text[start : start + length])}</i>" for start, length in starts if start < len(text)]
    ids = " ".join(str(token) for token in span.ids[: len(pieces)])
    return f'<span class="{css}" data-label="{label}" data-ids="{ids}">{"".join(pieces)}</span>'


def _pictures(row: PageRow) -> str:
    """Return the pictures of a row with their tiles, sizes and tokens."""
    spans = max((sequence.spans for sequence in row.sequences), key=_image_tokens, default=())
    starts = itertools.accumulate((span.tokens for span in spans), initial=0)
    ranges = {span.image: (start, span.tokens) for span, start in zip(spans, starts, strict=False)}
    return "".join(_picture(number, image, ranges.get(number)) for number, image in enumerate(row.images))


def _image_tokens(spans: Sequence[TokenSpan]) -> int:
    return sum(span.tokens for span in spans if span.image is not None)


def _picture(number: int, image: ImageView, tokens: tuple[int, int] | None) -> str:
    """Return a picture; `tokens` are the first of its row, from 0, and their number."""
    name, lines, tiles = f"Image {number + 1}", "", image.tiles
    about = f"{name} · {image.width:,} × {image.height:,} pixels"
    if tiles is not None and (tiles.rows, tiles.columns) != (1, 1):
        about += f" → {tiles.rows} × {tiles.columns} tiles{' and an overview' if tiles.has_overview else ''}"
        lines = f'<i style="--rows:{tiles.rows};--columns:{tiles.columns}"></i>'
    if tokens is not None:
        first, count = tokens
        about += f" · {count:,} tokens, {first + 1:,}–{first + count:,}"
    if tokens is not None and image.smaller is not None and image.smaller.tokens < tokens[1]:
        pixels, fewer = image.smaller
        about += f". At {math.isqrt(pixels):,} px (max_pixels {pixels:,}): {fewer:,} tokens instead of {tokens[1]:,}"
    picture = f'<span><img src="{image.picture}" alt="{name} of the row">{lines}</span>' if image.picture else ""
    return f'<figure class="picture">{picture}<figcaption class="small num">{about}.</figcaption></figure>'


def render_conversation(row: PageRow) -> str:
    """Return a row as a conversation: turn by turn, with tools and their results."""
    if row.conversation is None:
        text = escape((row.text or row.raw)[:_SHOWN_CHARACTERS])
        return f'<div class="turn learned"><span class="role">plain text{_TRAINED}</span>{text}</div>'
    messages, start = row.conversation.messages, row.conversation.completion_start
    tools = row.conversation.tools
    tools_html = (
        html.small(f"{html.plural(len(tools), 'tool is', 'tools are')} offered to the assistant.") if tools else ""
    )
    if not row.rejected or start is None:
        return tools_html + _turns(messages, row.trained_turns) + _pictures(row)
    answers = (("Chosen", messages[start:]), ("Rejected", row.rejected))
    sides = _sides((name, _turns(side, _answers_in(side))) for name, side in answers)
    return f'{tools_html}{_turns(messages[:start], ())}<div class="pair">{sides}</div>{_pictures(row)}'


def _answers_in(turns: Sequence[Message]) -> frozenset[int]:
    return frozenset(number for number, turn in enumerate(turns) if turn.role == "assistant" and not turn.is_empty)


def _turns(messages: Sequence[Message], trained_turns: Container[int]) -> str:
    turns = []
    count = 0  # of images so far
    for number, message in enumerate(messages):
        is_trained = number in trained_turns
        body = escape(message.content[:_SHOWN_CHARACTERS])
        for _ in message.images:
            count += 1
            body = body.replace(IMAGE_MARK, f'<span class="chip">▣ image {count}</span>', 1)
        if message.reasoning:
            body = f'<span class="small">thinks: {escape(message.reasoning[:_SHOWN_CHARACTERS])}</span>\n{body}'
        for call in message.tool_calls:
            body += f"\n<code>calls {escape(call.name)}({escape(str(call.arguments)[:2000])})</code>"
        css, word = (" learned", _TRAINED) if is_trained else ("", "")
        turns.append(f'<div class="turn{css}"><span class="role">{escape(message.role)}{word}</span>{body}</div>')
    return "".join(turns)

"""Paged lists of rows: skipped, with warnings, longest, shortest, duplicates."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple, get_args

from engine.data.contract import DatasetReport, PageRow, RowProblem
from ui.views.html import Column, Row, pick_button, pickable, plural, table

Listing = Literal["all", "left_out", "odd", "longest", "shortest", "length_gap", "duplicates", "contradictions"]
LISTINGS: tuple[Listing, ...] = get_args(Listing)
PAGE_ROWS = 15
PROBLEM_COLUMNS = (Column.of_numbers("Row"), Column.of_numbers("Line"))

_KIND_WORDS = {
    "not_json": "invalid JSON",
    "not_utf8": "not UTF-8",
    "not_an_object": "not an object",
    "too_long": "too long to read",
    "too_deep": "nested too deeply",
    "duplicate_key": "duplicate key",
    "bad_text": "broken characters",
    "bad_number": "NaN or infinity",
    "weight": "weight other than 0 or 1",
    "csv": "malformed CSV",
    "missing_column": "missing column",
    "not_text": "not text",
    "empty": "empty part",
    "unknown_role": "unknown role",
    "no_assistant_turn": "no assistant turn",
    "nothing_to_learn": "nothing to train on",
    "tools": "inconsistent tool calls",
    "template": "rejected by the chat template",
    "template_leaves_out": "text dropped by the template",
    "special_token": "special tokens in the text",
    "cut_away": "truncated whole",
    "unanswered": "last turn unanswered",
    "order": "turns out of order",
    "pair": "incomplete pair",
    "equal_answers": "equal answers",
    "other_prompt": "prompts differ",
    "white_space": "answers differ in white space only",
    "label": "label neither true nor false",
}


class ListPage(NamedTuple):
    """One page of a list, from 0."""

    number: int
    rows: int  # in the whole list

    @property
    def start(self) -> int:
        return self.number * PAGE_ROWS

    @property
    def end(self) -> int:
        return min(self.rows, self.start + PAGE_ROWS)


def rows_of(report: DatasetReport, listing: Listing) -> tuple[int, ...]:
    """Return the row numbers of a list, in its order; empty for `all`."""
    lists: dict[Listing, Sequence[int]] = {
        "left_out": [problem.row for problem in report.problems],
        "odd": list(dict.fromkeys(notice.row for notice in report.notices)),
        "longest": report.longest_rows,
        "shortest": report.shortest_rows,
        "length_gap": report.length_gap_rows,
        "duplicates": report.duplicate_rows,
        "contradictions": report.contradicting_rows,
    }
    return tuple(lists.get(listing, ()))


def listing_choices(report: DatasetReport | None) -> list[tuple[str, str]]:
    """Return the lists that have rows, with their counts."""
    if report is None:
        return [("all rows", "all")]
    odd = len({notice.row for notice in report.notices})
    more = "" if len(report.notices) == sum(report.notice_counts.values()) else "+"
    words: dict[Listing, str] = {
        "all": "all rows",
        "left_out": f"skipped ({report.dropped:,})",
        "odd": f"kept with warnings ({odd:,}{more})",
        "longest": "longest",
        "shortest": "shortest",
        "length_gap": "largest difference in length",
        "duplicates": f"duplicates ({report.duplicates:,})",
        "contradictions": f"contradictory ({report.contradictions:,})",
    }
    return [(words[listing], listing) for listing in LISTINGS if listing == "all" or rows_of(report, listing)]


def render_counts(report: DatasetReport) -> str:
    """Return the number of rows by problem and by warning."""
    skipped_html = _kinds(report.problem_counts, "left_out", f"{plural(report.dropped, 'row')} skipped")
    return skipped_html + _kinds(report.notice_counts, "odd", "Kept with warnings")


def render_problem_list(problems: Sequence[RowProblem], page: ListPage, reason: str) -> str:
    """Return a page of rows with the problem of each; `reason` is the head of its column."""
    return _render_rows(
        [Column(escape(reason), "why")], (problem_row(problem, picks=True) for problem in problems), page
    )


def render_row_list(rows: Sequence[PageRow], page: ListPage) -> str:
    """Return a page of rows with their lengths."""
    lines = []
    for row in rows:
        tokens = f"{sum(sequence.uncut_tokens for sequence in row.sequences):,}" if row.sequences else "–"
        cells = (f"{row.row + 1:,}", _line(row.line), tokens, escape(row.raw[:160]))
        lines.append(Row(cells, pickable(str(row.row), chosen=None)))
    return _render_rows([Column.of_numbers("Tokens")], lines, page)


def problem_row(problem: RowProblem, *, picks: bool) -> Row:
    """Return one row of a table of problems."""
    cells = (f"{problem.row + 1:,}", _line(problem.line), escape(problem.problem), escape(problem.sample[:160]))
    return Row(cells, pickable(str(problem.row), chosen=None) if picks else "")


def _kinds(counts: Mapping[str, int], listing: str, title: str) -> str:
    if not counts:
        return ""
    kinds = "".join(
        f"<li><b>{count:,}</b> {escape(_KIND_WORDS.get(kind, kind.replace('_', ' ')))}</li>"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f'<div class="kinds num">{pick_button(f"show:{listing}", title)}<ul>{kinds}</ul></div>'


def _render_rows(columns: Sequence[Column], rows: Iterable[Row], page: ListPage) -> str:
    html = table([*PROBLEM_COLUMNS, *columns, Column("Beginning", "soft begins")], rows, css="listed")
    if page.rows <= PAGE_ROWS:
        return html
    turns = [("← Earlier", page.number - 1, page.start > 0), ("Later →", page.number + 1, page.end < page.rows)]
    links = " ".join(pick_button(f"page:{number}", words) for words, number, is_there in turns if is_there)
    return f'{html}<p class="small num pager">{page.start + 1:,} to {page.end:,} of {page.rows:,} listed. {links}</p>'


def _line(line: int | None) -> str:
    return "–" if line is None else f"{line:,}"

"""Lists of rows that deserve a look: left out, odd, longest, shortest, repeated; a page of them at a time."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple, get_args

from engine.data.contract import DatasetReport, PageRow, RowProblem
from ui.pick import pickable
from ui.views.quantities import plural

Listing = Literal["all", "left_out", "odd", "longest", "shortest", "duplicates"]
LISTINGS: tuple[Listing, ...] = get_args(Listing)
PAGE_ROWS = 15

_KIND_WORDS = {
    "not_json": "no valid JSON",
    "not_utf8": "not UTF-8",
    "not_an_object": "not an object",
    "too_long": "too long to read",
    "too_deep": "nested too deeply",
    "duplicate_key": "a key given twice",
    "bad_text": "broken characters",
    "bad_number": "an endless number",
    "weight": "a weight that is neither 0 nor 1",
    "csv": "malformed CSV",
    "missing_column": "a column missing",
    "not_text": "something other than text",
    "empty": "an empty part",
    "unknown_role": "an unknown role",
    "no_assistant_turn": "no answer from the assistant",
    "nothing_to_learn": "nothing to learn",
    "tools": "tool calls that do not add up",
    "template": "refused by the chat template",
    "template_leaves_out": "words that the template leaves out",
    "special_token": "special tokens in the text",
    "cut_away": "cut away whole",
    "unanswered": "a last turn without an answer",
    "order": "turns out of order",
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
    """Numbers of the rows on a list, in its order; none for all rows, which are no list."""
    lists: dict[Listing, Sequence[int]] = {
        "left_out": [problem.row for problem in report.problems],
        "odd": list(dict.fromkeys(notice.row for notice in report.notices)),
        "longest": report.longest_rows,
        "shortest": report.shortest_rows,
        "duplicates": report.duplicate_rows,
    }
    return tuple(lists.get(listing, ()))


def listing_choices(report: DatasetReport | None) -> list[tuple[str, str]]:
    """What can be shown, with how many there are; a list without rows is not offered."""
    if report is None:
        return [("all rows", "all")]
    odd = len({notice.row for notice in report.notices})
    more = "" if len(report.notices) == sum(report.notice_counts.values()) else "+"
    words: dict[Listing, str] = {
        "all": "all rows",
        "left_out": f"left out ({report.dropped:,})",
        "odd": f"odd, kept ({odd:,}{more})",
        "longest": "longest",
        "shortest": "shortest",
        "duplicates": f"duplicates ({report.duplicates:,})",
    }
    return [(words[listing], listing) for listing in LISTINGS if listing == "all" or rows_of(report, listing)]


def render_counts(report: DatasetReport) -> str:
    """How many rows there are of each kind of problem, and of each kind of oddity."""
    left_out = _kinds(report.problem_counts, "left_out", f"{plural(report.dropped, 'row')} left out")
    odd = _kinds(report.notice_counts, "odd", "Kept, and odd")
    nothing = '<p class="small">No row is left out.</p>' if not report.dropped else ""
    return f"{left_out}{nothing}{odd}"


def render_problem_list(problems: Sequence[RowProblem], page: ListPage, reason: str) -> str:
    """A page of rows with what is wrong with each.

    Args:
        problems: Those of the page.
        page: Which it is.
        reason: Head of the column that says what is wrong.
    """
    rows = "".join(problem_row(problem, picks=True) for problem in problems)
    return _table(f'<th class="why">{escape(reason)}</th><th>It begins</th>', rows, page)


def render_row_list(rows: Sequence[PageRow], page: ListPage) -> str:
    """A page of rows with their lengths."""
    body = "".join(
        f"<tr {pickable(str(row.row))}><td class='r'>{row.row:,}</td><td class='r'>{_line(row.line)}</td>"
        f"<td class='r'>{_tokens(row)}</td><td class='soft begins'>{escape(row.raw[:160])}</td></tr>"
        for row in rows
    )
    return _table("<th class='r'>Tokens</th><th>It begins</th>", body, page)


def problem_row(problem: RowProblem, *, picks: bool) -> str:
    """One row of a table of problems."""
    return (
        f"<tr {pickable(str(problem.row)) if picks else ''}><td class='r'>{problem.row:,}</td>"
        f"<td class='r'>{_line(problem.line)}</td><td>{escape(problem.problem)}</td>"
        f"<td class='soft begins'>{escape(problem.sample[:160])}</td></tr>"
    )


def _kinds(counts: Mapping[str, int], listing: str, title: str) -> str:
    if not counts:
        return ""
    kinds = "".join(
        f"<li><b>{count:,}</b> {escape(_KIND_WORDS.get(kind, kind.replace('_', ' ')))}</li>"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return (
        f'<div class="kinds num"><button type="button" class="link" data-pick="show:{listing}">{escape(title)}</button>'
        f"<ul>{kinds}</ul></div>"
    )


def _table(heads: str, rows: str, page: ListPage) -> str:
    return (
        '<div class="scroll"><table class="plain listed"><thead><tr><th class="r">Row</th><th class="r">Line</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>{_pager(page)}"
    )


def _pager(page: ListPage) -> str:
    if page.rows <= PAGE_ROWS:
        return ""
    turns = [("← Earlier", page.number - 1, page.start > 0), ("Later →", page.number + 1, page.end < page.rows)]
    links = " ".join(
        f'<button type="button" class="link" data-pick="page:{number}">{words}</button>'
        for words, number, is_there in turns
        if is_there
    )
    return f'<p class="small num pager">{page.start + 1:,} to {page.end:,} of {page.rows:,} listed. {links}</p>'


def _line(line: int | None) -> str:
    return "–" if line is None else f"{line:,}"


def _tokens(row: PageRow) -> str:
    return f"{sum(sequence.uncut_tokens for sequence in row.sequences):,}" if row.sequences else "–"

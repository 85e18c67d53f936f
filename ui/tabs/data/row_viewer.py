"""The rows of a dataset, one at a time: turn the pages, search, or go through those that deserve a look."""

from typing import Any

import gradio as gr

from engine.data.contract import DatasetPage, DatasetReport
from ui.backend.dataset_checks import CheckQuestion, question_of
from ui.components import Dropdown, Radio
from ui.errors import explained, trouble
from ui.page import Page
from ui.pick import pick_list, picked
from ui.tabs.data.row_search import SearchPart
from ui.views.dataset import render_row
from ui.views.row_lists import (
    LISTINGS,
    PAGE_ROWS,
    Listing,
    ListPage,
    listing_choices,
    render_counts,
    render_problem_list,
    render_row_list,
    rows_of,
)
from ui.views.token_mask import TELL_WHICH

_TITLES = {
    "odd": "Kept, with something odd",
    "longest": "The longest rows",
    "shortest": "The shortest rows",
    "duplicates": "Rows that repeat an earlier one exactly",
}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class RowsPart:
    """Lays out the row viewer and the list of rows below it; `wire` connects them."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Row(elem_id="row-controls"):
            self.previous = gr.Button("← Previous", size="sm", min_width=90, scale=0)
            self.number = gr.Number(
                0, label="Row", precision=0, minimum=0, container=False, min_width=90, elem_id="row"
            )
            self.next = gr.Button("Next →", size="sm", min_width=90, scale=0)
            self.view = Radio(
                [("As tokens", "tokens"), ("As a conversation", "conversation")],
                value="tokens",
                show_label=False,
                container=False,
                elem_id="row-view",
            )
        with gr.Row(elem_id="row-finding"):
            self.listing = Dropdown(
                listing_choices(None),
                value="all",
                label="Show",
                container=False,
                min_width=170,
                scale=1,
                elem_id="show",
            )
            self.search = SearchPart(page)
        self.shown = gr.HTML(elem_id="row-shown", js_on_load=TELL_WHICH)
        self.list = pick_list(elem_id="problems")
        self._list_page = gr.State(0)

    @property
    def inputs(self) -> list[Any]:
        """What `render_list` wants to know beside the question."""
        return [self.listing, self._list_page]

    def wire(self) -> None:
        """Connect the events."""
        values = self._page.form.components
        viewing = [self.number, self.view, *values]
        turning = [self.number, self.listing, *values]
        turned = [
            button.click(self._turn(step), turning, self.number, **_QUIET)
            for button, step in ((self.previous, -1), (self.next, 1))
        ]
        listed = self.listing.input(self._begin_list, turning, [self.number, self._list_page], **_QUIET)
        jumped = self.list.click(
            self._jump, [self.number, *values], [self.number, self.listing, self._list_page], **_QUIET
        )
        # The row first, for that is what a person waits for; a list may have to look many rows up.
        for event in (*turned, self.search.wire(self.number)):
            event.then(self._show, viewing, self.shown, **_QUIET)
        for event in (listed, jumped):
            shown = event.then(self._show, viewing, self.shown, **_QUIET)
            shown.then(self._list, [*self.inputs, *values], self.list, **_QUIET)
        gr.on([self.number.submit, self.view.input], self._show, viewing, self.shown, **_QUIET)

    def preview(self, question: CheckQuestion, row: int) -> DatasetPage:
        """The page of one row.

        Raises:
            EngineError: If the dataset or the tokenizer cannot be read.
        """
        return self._page.services.inspector.preview(
            question.dataset, question.model, question.max_length, first_row=max(0, row), count=1
        )

    def render_list(self, question: CheckQuestion, report: DatasetReport | None, listing: str, page: int) -> str:
        """How many rows deserve a look, and one page of the list that is chosen; never raises."""
        if report is None:
            return ""
        chosen = _listing(listing, report)
        # Beside all rows, those that are left out are what a person has to know of.
        shown: Listing = ("left_out" if report.problems else "odd") if chosen == "all" else chosen
        counts = render_counts(report)
        rows = rows_of(report, shown)
        if not rows:
            return counts
        part = ListPage(min(max(0, page), (_entries(report, shown) - 1) // PAGE_ROWS), _entries(report, shown))
        title = "" if shown == "left_out" else f"<h3>{_TITLES[shown]}</h3>"
        if shown == "left_out":
            return counts + render_problem_list(report.problems[part.start : part.end], part, "Left out because")
        if shown == "odd":
            return counts + title + render_problem_list(report.notices[part.start : part.end], part, "What is odd")
        try:
            found = self._page.services.inspector.preview(
                question.dataset, question.model, None, rows=rows[part.start : part.end], brief=True
            )
        except Exception as error:
            return counts + trouble(explained(error))
        return f"{counts}{title}{render_row_list(found.rows, part)}"

    def _question(self, values: tuple[Any, ...]) -> CheckQuestion | None:
        question = question_of(self._page.form.mapping(values))
        return self._page.services.tokenizers.answerable(question) if question is not None else None

    def _report(self, question: CheckQuestion | None) -> DatasetReport | None:
        check = self._page.services.checks.find(question) if question is not None else None
        return check.report if check is not None else None

    def _show(self, row: float, view: str, *values: Any) -> str:
        question = self._question(values)
        if question is None:
            return ""
        try:
            return render_row(self.preview(question, int(row or 0)), view == "tokens")
        except Exception as error:
            return trouble(explained(error))

    def _turn(self, step: int) -> Any:
        """To the row before or after; within the list that is chosen."""

        def turn(row: float, listing: str, *values: Any) -> int:
            number = int(row or 0)
            report = self._report(self._question(values))
            rows = rows_of(report, _listing(listing, report)) if report is not None else ()
            if not rows:
                return max(0, number + step)
            if number not in rows:
                return rows[0]
            return rows[min(max(0, rows.index(number) + step), len(rows) - 1)]

        return turn

    def _begin_list(self, row: float, listing: str, *values: Any) -> tuple[Any, int]:
        """Begin a list at its first row, unless the shown one is on it."""
        report = self._report(self._question(values))
        rows = rows_of(report, _listing(listing, report)) if report is not None else ()
        return (rows[0] if rows and int(row or 0) not in rows else gr.skip()), 0

    def _jump(self, row: float, event: gr.EventData, *values: Any) -> tuple[Any, Any, Any]:
        """To a row of the list, to another page of it, or to another list."""
        what, _, which = picked(event).rpartition(":")
        if not what and which.isdigit() and len(which) < 12:
            return int(which), gr.skip(), gr.skip()
        if what == "page" and which.isdigit() and len(which) < 6:
            return gr.skip(), gr.skip(), int(which)
        if what == "show" and which in LISTINGS:
            number, first_page = self._begin_list(row, which, *values)
            return number, which, first_page
        return gr.skip(), gr.skip(), gr.skip()

    def _list(self, listing: str, list_page: int, *values: Any) -> str:
        question = self._question(values)
        report = self._report(question)
        return self.render_list(question, report, listing, list_page) if question is not None else ""


def _listing(chosen: str, report: DatasetReport | None) -> Listing:
    """The list that a page names, if there is anything on it."""
    known = next((listing for listing in LISTINGS if listing == chosen), None)
    return known if known is not None and report is not None and rows_of(report, known) else "all"


def _entries(report: DatasetReport, listing: Listing) -> int:
    """Lines of a list; a row can have several oddities."""
    return len(report.notices) if listing == "odd" else len(rows_of(report, listing))

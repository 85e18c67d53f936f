"""The rows of a dataset, one at a time: browse, search, or step through lists such as skipped rows."""

import functools
from collections.abc import Iterator
from typing import Any

import gradio as gr

from loratory.engine.data.contract import MAX_SEARCH_CHARACTERS, DatasetPage, DatasetReport, FoundRow, SearchProgress
from loratory.ui.backend.background import as_engine_error
from loratory.ui.backend.dataset_checks import CheckQuestion, question_of
from loratory.ui.components import HIDDEN, QUICK, SLOW, UNCHANGED, Updates, pick_list, picked_value, script
from loratory.ui.gradio_internals import Dropdown, Radio
from loratory.ui.page import Page
from loratory.ui.views import rows as row_views
from loratory.ui.views.html import ListPage, error_box, small
from loratory.ui.views.rows import Listing

_TITLES = {
    "odd": "Kept with warnings",
    "longest": "Longest rows",
    "shortest": "Shortest rows",
    "duplicates": "Exact duplicates of an earlier row",
    "contradictions": "Pairs that another row contradicts",
    "length_gap": "Largest differences in length",
}


class RowViewer:
    """Lays out the row viewer and the list of rows below it; `wire` connects them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Row(elem_id="row-controls"):
            self.previous = gr.Button("← Previous", size="sm", min_width=90, scale=0)
            self.number = gr.Number(
                1, label="Row", precision=0, minimum=1, container=False, min_width=90, elem_id="row"
            )
            self.next = gr.Button("Next →", size="sm", min_width=90, scale=0)
            self.view = Radio(
                [("As tokens", "tokens"), ("As a conversation", "conversation")], value="tokens", show_label=False,
                container=False, elem_id="row-view",
            )  # fmt: skip
        with gr.Row(elem_id="row-finding"):
            self.listing = Dropdown(
                row_views.listing_choices(None), value="all", label="Show", container=False, min_width=170, scale=1,
                elem_id="show",
            )  # fmt: skip
            self.text = gr.Textbox(
                show_label=False, placeholder="Find the next row with this text; press Enter", container=False,
                max_lines=1, max_length=MAX_SEARCH_CHARACTERS, scale=2, min_width=260, elem_id="row-find",
            )  # fmt: skip
            self.stop = gr.Button("Stop", size="sm", visible=False, scale=0, min_width=70, elem_id="row-find-stop")
            self.found = gr.HTML(elem_id="row-found", scale=1)
        self.row_html = gr.HTML(elem_id="row-shown", js_on_load=script("tell_which"))
        self.list = pick_list(elem_id="problems")
        self.list_page = gr.State(0)
        # Inputs of `render_list`.
        self.inputs = [self.listing, self.list_page]

    def wire(self) -> None:
        """Connect the events."""
        values = self.page.form.components
        viewing = [self.number, self.view, *values]
        turning = [self.number, self.listing, *values]
        listing = [self.number, self.listing, self.list_page]
        turn_events = [
            button.click(functools.partial(self.turn, step), turning, self.number, **SLOW)
            for button, step in ((self.previous, -1), (self.next, 1))
        ]
        self.text.change(None, None, self.found, js="() => ''", **QUICK)  # it was for the previous text
        find_event = self.text.submit(
            self.find, [self.text, self.number, *values], [self.number, self.found, self.stop], concurrency_limit=None,
            **SLOW,
        )  # fmt: skip
        # Gradio calls this once a search is cancelled; as an answer to the click, the last progress could come after it.
        stopped = small("The search was stopped.", role="status")
        find_event.failure(lambda: (stopped, HIDDEN), None, [self.found, self.stop], **QUICK)
        self.stop.click(None, cancels=find_event)
        # The row first: a list may need many rows.
        for event in (*turn_events, find_event):
            event.then(self.show, viewing, self.row_html, **SLOW)
        list_event = self.listing.input(self.begin_list, turning, listing, **SLOW)
        jump_event = self.list.click(self.jump, [self.number, *values], listing, **SLOW)
        for event in (list_event, jump_event):
            show_event = event.then(self.show, viewing, self.row_html, **SLOW)
            show_event.then(self.redraw_list, [*self.inputs, *values], self.list, **SLOW)
        gr.on([self.number.submit, self.view.input], self.show, viewing, self.row_html, **SLOW)

    def preview(self, question: CheckQuestion, row: int) -> DatasetPage:
        """Return the page of one row.

        Raises:
            EngineError: If the dataset or the tokenizer cannot be read.
        """
        inspector, length = self.page.services.inspector, question.max_length
        return inspector.preview(
            question.dataset, question.model, length, first_row=row, count=1, vision=question.vision
        )

    def render_list(self, question: CheckQuestion, report: DatasetReport | None, listing: str, page: int) -> str:
        """Return counts of problems and one page of the chosen list; never raises."""
        if report is None:
            return ""
        kind = _listing(listing, report)
        counts = row_views.render_counts(report)
        rows = row_views.rows_of(report, kind)  # none for all rows: a click on a count lists what it counts
        if not rows:
            return counts
        entries = len(report.notices) if kind == "odd" else len(rows)  # a row can have several warnings
        part = ListPage.at(page, entries, row_views.PAGE_ROWS)
        if kind == "left_out":
            return counts + row_views.render_problem_list(report.problems, part, "Reason")
        heading = f"{counts}<h3>{_TITLES[kind]}</h3>"
        if kind == "odd":
            return heading + row_views.render_problem_list(report.notices, part, "Warning")
        try:
            preview = self.page.services.inspector.preview(
                question.dataset, question.model, None, rows=rows[part.start : part.end], brief=True,
                vision=question.vision,
            )  # fmt: skip
        except Exception as error:
            return counts + error_box(as_engine_error(error))
        return heading + row_views.render_row_list(preview.rows, part)

    def question(self, values: tuple[Any, ...]) -> CheckQuestion | None:
        """Return the form's question as far as it can be answered now; None without a dataset."""
        question = question_of(self.page.settings(values))
        return self.page.services.tokenizers.answerable(question) if question is not None else None

    def _report(self, question: CheckQuestion | None) -> DatasetReport | None:
        check = self.page.services.checks.find(question) if question is not None else None
        return check.report if check is not None else None

    def _rows(self, listing: str, values: tuple[Any, ...]) -> tuple[int, ...]:
        report = self._report(self.question(values))
        return row_views.rows_of(report, _listing(listing, report)) if report is not None else ()

    def show(self, row: float, view: str, *values: Any) -> str:
        """Return one row, or why it cannot be read."""
        question = self.question(values)
        if question is None:
            return ""
        try:
            return row_views.render_row(self.preview(question, row_of(row)), view == "tokens")
        except Exception as error:
            return error_box(as_engine_error(error))

    def turn(self, step: int, row: float, listing: str, *values: Any) -> int:
        """Return the number of the next or the previous row, of the chosen list where there is one."""
        number, rows = row_of(row), self._rows(listing, values)
        if not rows:
            return max(1, number + step + 1)
        if number not in rows:
            return rows[0] + 1
        return rows[min(max(0, rows.index(number) + step), len(rows) - 1)] + 1

    def begin_list(self, row: float, listing: str, *values: Any) -> Updates:
        """Start a list at its first row, unless the shown row is on it."""
        rows = self._rows(listing, values)
        outside = rows and row_of(row) not in rows
        return {self.list_page: 0} | ({self.number: rows[0] + 1} if outside else {})

    def jump(self, row: float, event: gr.EventData, *values: Any) -> Updates:
        """Go to a row of the list, to another page of it, or to another list."""
        what, _, which = picked_value(event).rpartition(":")
        if not what and which.isdigit() and len(which) < 12:
            return {self.number: int(which) + 1}
        if what == "page" and which.isdigit() and len(which) < 6:
            return {self.list_page: int(which)}
        if what == "show" and which in row_views.LISTINGS:
            return {self.listing: which, **self.begin_list(row, which, *values)}
        return UNCHANGED

    def redraw_list(self, listing: str, list_page: int, *values: Any) -> str:
        """Return the chosen list of the form's dataset."""
        question = self.question(values)
        return self.render_list(question, self._report(question), listing, list_page) if question is not None else ""

    def find(self, text: str, row: float, *values: Any) -> Iterator[Updates]:
        """Find the next row with a text, after the shown one, else from the top; reports progress."""
        question = question_of(self.page.settings(values))
        if question is None or not text.strip():
            yield {self.found: "", self.stop: HIDDEN}
            return
        try:
            steps = self.page.services.inspector.find_steps(question.dataset, text.strip(), after_row=row_of(row))
            for step in steps:
                if isinstance(step, FoundRow):
                    number = step.row + 1 if step.row is not None else UNCHANGED
                    yield {self.number: number, self.found: _render_match(step), self.stop: HIDDEN}
                else:
                    yield {self.found: _progress(step), self.stop: gr.update(visible=True)}
        except Exception as error:
            yield {self.found: error_box(as_engine_error(error)), self.stop: HIDDEN}


def row_of(number: float | None) -> int:
    """Return the row, from 0, that a person means by a number from 1; the first one by an empty field."""
    return max(0, int(number or 1) - 1)


def _listing(chosen: str, report: DatasetReport | None) -> Listing:
    """Return the requested list, or `all` if it has no rows."""
    match = next((listing for listing in row_views.LISTINGS if listing == chosen), None)
    return match if match is not None and report is not None and row_views.rows_of(report, match) else "all"


def _render_match(match: FoundRow) -> str:
    if match.row is None:
        return small("No matching rows", role="status")
    return small("Continued from the top.", role="status") if match.from_top else ""


def _progress(step: SearchProgress) -> str:
    part = f", {step.fraction:.0%}" if step.fraction is not None else ""
    return f'<p class="small num" role="status">Searching: {step.rows:,} rows{part} …</p>'

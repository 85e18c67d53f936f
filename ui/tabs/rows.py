"""The rows of a dataset, one at a time: turn the pages, search, and jump to what is worth a look."""

from typing import Any

import gradio as gr

from engine.data.page import DatasetPage
from engine.errors import EngineError
from ui.checks import CheckQuestion, question_of
from ui.errors import trouble
from ui.page import Page
from ui.pick import pick_list, picked
from ui.views.dataset import render_row


class RowsPart:
    """Lays out the row viewer; `wire` connects it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Row(elem_id="row-controls"):
            self.previous = gr.Button("← Previous", size="sm", min_width=90, scale=0)
            self.number = gr.Number(
                0, label="Row", precision=0, minimum=0, container=False, min_width=90, elem_id="row"
            )
            self.next = gr.Button("Next →", size="sm", min_width=90, scale=0)
            self.view = gr.Radio(
                [("As tokens", "tokens"), ("As a conversation", "conversation")],
                value="tokens",
                show_label=False,
                container=False,
                elem_id="row-view",
            )
        with gr.Row(elem_id="row-finding"):
            self.find = gr.Textbox(
                show_label=False,
                placeholder="Find the next row that says … and press Enter",
                container=False,
                max_lines=1,
                scale=2,
                min_width=260,
                elem_id="row-find",
            )
            self.found = gr.HTML(elem_id="row-found", scale=1)
        self.jumps = pick_list(elem_id="row-jumps")
        self.shown = gr.HTML(elem_id="row-shown")

    def wire(self, problems: gr.HTML) -> None:
        """Connect the events.

        Args:
            problems: A list whose rows, when picked, are shown here.
        """
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        values = self._page.form.components
        viewing = [self.number, self.view, *values]
        turned = [
            button.click(_turn_by(step), self.number, self.number, queue=False, **quiet)
            for button, step in ((self.previous, -1), (self.next, 1))
        ]
        jumped = [rows.click(_picked_row, None, self.number, queue=False, **quiet) for rows in (problems, self.jumps)]
        found = self.find.submit(self._find, [self.find, self.number, *values], [self.number, self.found], **quiet)
        for event in (*turned, *jumped, found):
            event.then(self._show, viewing, self.shown, **quiet)
        gr.on([self.number.submit, self.view.input], self._show, viewing, self.shown, **quiet)

    def preview(self, question: CheckQuestion, row: int) -> DatasetPage:
        """The page of one row.

        Raises:
            EngineError: If the dataset or the tokenizer cannot be read.
        """
        return self._page.services.inspector.preview(
            question.dataset, question.model, question.max_length, first_row=max(0, row), count=1
        )

    def _show(self, row: float, view: str, *values: Any) -> str:
        question = question_of(self._page.form.mapping(values))
        if question is None:
            return ""
        try:
            return render_row(self.preview(question, int(row or 0)), view == "tokens")
        except EngineError as error:
            return trouble(error)

    def _find(self, text: str, row: float, *values: Any) -> tuple[Any, str]:
        """Number of the next row that holds a text: after the shown one, else from the top."""
        question = question_of(self._page.form.mapping(values))
        if question is None or not text.strip():
            return gr.skip(), ""
        try:
            for first in (int(row or 0) + 1, 0):
                page = self._page.services.inspector.preview(
                    question.dataset, None, question.max_length, first_row=first, count=1, search=text.strip()
                )
                if page.rows:
                    return page.rows[0].row, "" if first else '<p class="small">From the top again.</p>'
        except EngineError as error:
            return gr.skip(), trouble(error)
        return gr.skip(), '<p class="small">No row says that.</p>'


def _turn_by(step: int) -> Any:
    return lambda row: max(0, int(row or 0) + step)


def _picked_row(event: gr.EventData) -> int:
    text = picked(event)
    return int(text) if text.isdigit() and len(text) < 12 else 0

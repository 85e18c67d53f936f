"""Finding the next row that holds a text, with progress and a way to stop."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from engine.data.contract import MAX_SEARCH_CHARACTERS, FoundRow, SearchProgress
from ui.backend.dataset_checks import question_of
from ui.errors import explained, trouble
from ui.page import Page

_STOPPED = '<p class="small" role="status">The search was stopped.</p>'


class SearchPart:
    """Lays out the search; `wire` connects it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.text = gr.Textbox(
            show_label=False,
            placeholder="Find the next row that says … and press Enter",
            container=False,
            max_lines=1,
            max_length=MAX_SEARCH_CHARACTERS,
            scale=2,
            min_width=260,
            elem_id="row-find",
        )
        self.stop = gr.Button("Stop", size="sm", visible=False, scale=0, min_width=70, elem_id="row-find-stop")
        self.found = gr.HTML(elem_id="row-found", scale=1)
        self._searches: dict[str, threading.Event] = {}  # by page: set to end its search
        self._lock = threading.Lock()  # guards _searches: handlers of many pages ask at once

    def wire(self, number: gr.Number) -> Any:
        """Connect the events; returns the one after which `number` may name another row."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.stop.click(self._stop, None, None, queue=False, **quiet)
        return self.text.submit(
            self._find,
            [self.text, number, *self._page.form.components],
            [number, self.found, self.stop],
            concurrency_limit=None,
            **quiet,
        )

    def _find(self, text: str, row: float, request: gr.Request, *values: Any) -> Iterator[tuple[Any, str, Any]]:
        """Number of the next row that holds a text: after the shown one, else from the top."""
        question = question_of(self._page.form.mapping(values))
        hidden = gr.update(visible=False)
        if question is None or not text.strip():
            yield gr.skip(), "", hidden
            return
        stopped = self._begin(request)
        try:
            steps = self._page.services.inspector.find_steps(question.dataset, text.strip(), after_row=int(row or 0))
            for step in steps:
                if isinstance(step, FoundRow):
                    yield step.row if step.row is not None else gr.skip(), _found(step), hidden
                elif stopped.is_set():
                    yield gr.skip(), _STOPPED, hidden
                    return
                else:
                    yield gr.skip(), _progress(step), gr.update(visible=True)
        except Exception as error:
            yield gr.skip(), trouble(explained(error)), hidden
        finally:
            self._end(request, stopped)

    def _begin(self, request: gr.Request) -> threading.Event:
        """A search of a page; one that it had under way ends."""
        stopped = threading.Event()
        with self._lock:
            earlier = self._searches.get(str(request.session_hash))
            self._searches[str(request.session_hash)] = stopped
        if earlier is not None:
            earlier.set()
        return stopped

    def _end(self, request: gr.Request, stopped: threading.Event) -> None:
        with self._lock:
            if self._searches.get(str(request.session_hash)) is stopped:
                del self._searches[str(request.session_hash)]

    def _stop(self, request: gr.Request) -> None:
        with self._lock:
            search = self._searches.get(str(request.session_hash))
        if search is not None:
            search.set()


def _found(found: FoundRow) -> str:
    if found.row is None:
        return '<p class="small" role="status">No row says that.</p>'
    return '<p class="small" role="status">From the top again.</p>' if found.from_top else ""


def _progress(step: SearchProgress) -> str:
    part = f", {step.fraction:.0%}" if step.fraction is not None else ""
    return f'<p class="small num" role="status">Searching: {step.rows:,} rows{part} …</p>'

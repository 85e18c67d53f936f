"""The queue on the Runs tab: who waits for what, and who comes first."""

from typing import Any, get_args

import gradio as gr
from gradio.events import Dependency

from engine.runs.control import request_start_anyway, request_stop
from engine.runs.summary import RunSummary
from engine.runs.supervision.queue import QueueMove, QueueOrder
from ui.errors import shown_as_message
from ui.page import Page
from ui.pick import pick_list, picked
from ui.views.queue import render_queue


class QueuePart:
    """Lays out the waiting runs; the Runs tab refreshes them with its table."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._order = QueueOrder(page.services.home)
        self.list = pick_list(elem_id="queue")

    def wire(self) -> Dependency:
        """Connect the buttons; the event after which the list is to be drawn again."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        return self.list.click(shown_as_message(self._act), None, None, **quick)

    def draw(self, rows: list[RunSummary]) -> str:
        """The waiting ones among all rows, in their order."""
        return render_queue(self._in_order(rows))

    def _in_order(self, rows: list[RunSummary]) -> list[RunSummary]:
        waiting = {row.id: row for row in rows if row.state == "queued"}
        return [waiting[run_id] for run_id in self._order.sort(list(waiting))]

    def _act(self, event: gr.EventData) -> None:
        action, _, run_id = picked(event).partition(":")
        runs, reader = self._page.services.runs, self._page.reader
        if not reader.exists(run_id):
            return
        run = runs.get(run_id)
        moves: dict[str, QueueMove] = {move: move for move in get_args(QueueMove)}
        if action in moves:
            waiting = [row.id for row in reader.summaries() if row.state == "queued"]
            if run.id in waiting:
                self._order.shift(run.id, waiting, moves[action])
        elif action == "anyway":
            request_start_anyway(run)
        elif action == "out":
            request_stop(run)
        reader.look_again()

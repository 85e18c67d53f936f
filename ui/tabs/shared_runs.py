"""What the Runs tab shows of a lab: devices and queue, and runs that other people share."""

import time
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.accounts.lab import read_settings
from loratory.engine.accounts.people import Action
from loratory.engine.config.load import config_to_yaml
from loratory.engine.errors import EngineError
from loratory.engine.lab.queue import QueueBoard
from loratory.engine.lab.rules import is_shared
from loratory.engine.runs.disk import disk_use, free_bytes
from loratory.engine.runs.usage import read_electricity
from loratory.ui import components as ui
from loratory.ui.backend.background import Cache
from loratory.ui.backend.run_reader import RunSnapshot, SharedRuns, can_chat, name_of
from loratory.ui.page import Page, request_view
from loratory.ui.polls import RUN_SECONDS, digest, poll, poll_answer
from loratory.ui.services import Services
from loratory.ui.views.html import empty, error_box, log
from loratory.ui.views.lab import render_devices, render_own_disk, render_queue
from loratory.ui.views.loss_chart import ChartView, loss_figure
from loratory.ui.views.run_details import render_run_details, without_folders
from loratory.ui.views.run_table import render_shared_runs
from loratory.ui.views.run_view import render_heading

_SECONDS = 4
_DISK_SECONDS = 60  # measured file by file
_DEVICES, _TURNS, _DISK = "queue-devices", "queue-turns", "queue-disk"


class LabQueuePart:
    """Shows who has which device, who is next and why the rest waits; polls while it is visible.

    `loratory.engine.lab.queue` leaves out what a user may not see.
    """

    def __init__(self, services: Services, board: QueueBoard) -> None:
        assert services.person is not None, "only a lab has this queue"
        self._services = services
        self._board = board
        self._person = services.person
        self._disk: Cache[str] = Cache(capacity=1)
        gr.HTML("<h2>Lab</h2>")
        for elem_id, html in self._render().items():
            ui.live_html(html, elem_id=elem_id)
        poll(self.news, _SECONDS, question="queue", elem_id="queue-live")

    def news(self, _question: str, last_stamp: str) -> str | None:
        """Answer a poll: the queue as this person may see it now."""
        values = self._render()
        now = digest(values)
        return None if now == last_stamp else poll_answer(now, values)

    def _render(self) -> dict[str, str]:
        try:
            entries = self._board.entries(self._person)
            return {
                _DEVICES: render_devices(self._board.devices(), entries),
                _TURNS: render_queue(entries, self._person.name),
                _DISK: self._disk.get(time.monotonic() // _DISK_SECONDS, self._own_disk),
            }
        except EngineError as error:
            return {_DEVICES: error_box(error), _TURNS: "", _DISK: ""}

    def _own_disk(self) -> str:
        home, limits = self._services.home, read_settings(self._services.home).limits
        return render_own_disk(disk_use(home, self._person.name), limits, free_bytes(home))


_NOTHING_SHARED = empty(
    "Nothing shared yet", "Runs of other people appear here once they share them. Yours stay private until you do."
)


class SharedRunsPart:
    """Lays out the table of shared runs, and below it the one that is picked; `wire` connects it."""

    def __init__(self, page: Page, shared: SharedRuns) -> None:
        self.page = page
        self._shared = shared
        gr.HTML("<h2>Shared with the lab</h2>")
        self.table = ui.pick_list(_NOTHING_SHARED, elem_id="shared-runs")
        with gr.Column(visible=False, elem_id="shared-run") as self.panel:
            self.live = poll(self.answer, RUN_SECONDS, elem_id="shared-live")
            self.heading = ui.live_html(elem_id="shared-heading")
            with gr.Row(elem_id="shared-actions"):
                self.chat = gr.Button("Open in Chat", scale=0, min_width=160, elem_id="shared-chat")
                self.copy = gr.Button("Copy settings", scale=0, min_width=150, elem_id="shared-copy")
            self.loss = ui.chart(
                "The curve begins with the first step.", elem_id="shared-loss", elem_classes="loss-chart"
            )
            self.details = gr.HTML(elem_id="shared-details")
        self.run_name = page.other_run
        self._change = gr.State({})
        self._outputs = [self.panel, self.live, self.heading, self.chat, self.loss, self.details, self.run_name]

    def wire(self, tab: gr.Tab) -> None:
        """Connect the events."""
        page, chat = self.page, [self.page.chosen_run, self.page.wants_result]
        self.list_after(tab.select(self.show, self.run_name, self._outputs, **ui.SLOW))
        pick_event = self.table.click(ui.picked_value, None, self.run_name, **ui.QUICK)
        self.list_after(pick_event.then(self.show, self.run_name, self._outputs, **ui.SLOW))
        self.list_after(
            self.live.submit(self.show, self.run_name, self._outputs, trigger_mode="always_last", **ui.SLOW)
        )
        self.run_name.change(None, None, None, js=ui.script("scroll_to_run"), **ui.QUICK)
        copy_outputs = [self._change, page.copied_from]
        copy_event = self.copy.click(ui.shown_as_message(self.settings), self.run_name, copy_outputs, **ui.SLOW)
        page.open_tab(page.fill_after(copy_event, self._change, "Settings copied"), "method")
        page.open_tab(
            self.chat.click(lambda name: (name, request_view("chat")), self.run_name, chat, **ui.QUICK), "chat"
        )

    def list_after(self, event: Dependency) -> None:
        """List the runs after an event."""
        event.then(ui.shown_in_place(self.render), self.run_name, self.table, **ui.QUICK)

    def render(self, run_name: str) -> str:
        """Return the table of shared runs."""
        rows = self._shared.rows()
        return render_shared_runs(rows, run_name) if rows else _NOTHING_SHARED

    def answer(self, question: str, stamp: str) -> str | None:
        """Return the curve and the heading as far as they are new, as `loratory.ui.polls.poll` sends them.

        Where more has changed, or the run is no longer shared, the page asks for all of it by an event.
        """
        name, _, shown_stamp = question.partition(" ")
        stamp = stamp or shown_stamp
        try:
            snapshot = self._observe(name)
        except EngineError:
            return poll_answer("gone", {}, submit=True) if stamp != "gone" else None
        new = _stamp_of(snapshot)
        if new == stamp:
            return None
        if new.rpartition(" ")[2] != stamp.rpartition(" ")[2]:
            return poll_answer(new, {}, submit=True)
        return self._shared.readers.html_cache.get((name, new), lambda: _render(snapshot, new))

    def show(self, name: str) -> ui.Updates:
        """Return the picked run, if the user may read it now."""
        if not name:
            return {self.panel: ui.HIDDEN, self.live: ""}
        try:
            snapshot = self._observe(name)
        except EngineError as error:
            gr.Info(escape(str(error)))
            return {self.panel: ui.HIDDEN, self.live: "", self.run_name: ""}
        config, name = snapshot.config, name_of(snapshot.run)
        electricity = read_electricity(self.page.services.home)
        facts = render_run_details(snapshot, self._shared.summary(snapshot.run), electricity)
        # Reads by admins of runs that are not shared are logged, so they are not repeated automatically.
        follows = snapshot.is_live and is_shared(snapshot.run.folder)
        return {
            self.panel: gr.update(visible=True),
            self.live: f"{name} {_stamp_of(snapshot)}" if follows else "",
            self.heading: _heading(snapshot),
            self.chat: ui.visible_if(can_chat(snapshot.run)),
            self.loss: loss_figure(snapshot.history, ChartView(), snapshot.run.id),
            self.details: facts + (log(config_to_yaml(config), "config.yaml") if config is not None else ""),
            self.run_name: name,
        }

    def _observe(self, name: str) -> RunSnapshot:
        snapshot = self._shared.observe(name, Action.READ)
        return replace(snapshot, config=without_folders(snapshot.config) if snapshot.config is not None else None)

    def settings(self, name: str) -> tuple[Any, Any]:
        """Return the settings for the form, without those that only the owner may use."""
        mapping, left_out = self._shared.settings(name)
        if left_out:
            gr.Info(f"Choose your own {', '.join(left_out)}: those of this run are files of its owner.", duration=10)
        return mapping, ""


def _render(snapshot: RunSnapshot, stamp: str) -> str:
    loss = loss_figure(snapshot.history, ChartView(), snapshot.run.id)
    return poll_answer(stamp, {"shared-heading": _heading(snapshot), "shared-loss": loss})


def _heading(snapshot: RunSnapshot) -> str:
    owner, name = escape(snapshot.run.owner), escape(name_of(snapshot.run), quote=True)
    return f'<p class="small" data-run="{name}">Of {owner}, read only.</p>{render_heading(snapshot)}'


def _stamp_of(snapshot: RunSnapshot) -> str:
    """Return a stamp of the curve; its last word changes with the rest of the view."""
    return f"{snapshot.stamp} {snapshot.state.state}-{can_chat(snapshot.run):d}"

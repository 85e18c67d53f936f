"""Runs: everything that was ever started; found, looked at, compared, copied, deleted."""

import contextlib
from typing import Any

import gradio as gr

from engine.errors import EngineError
from engine.runs.selection import select_runs
from engine.runs.store import folder_size_bytes
from ui.chart import chart
from ui.errors import shown_as_message, trouble
from ui.page import Page
from ui.pick import pick_list, picked
from ui.views.loss_chart import COMPARED_AT_MOST, ChartView, NamedHistory, overlay_figure
from ui.views.quantities import size
from ui.views.run_details import ComparedRun, render_differences, render_run_details
from ui.views.run_table import (
    COMPARE_PREFIX,
    FILTERS,
    MORE,
    NO_RUNS,
    NOTHING_FOUND,
    ORDERS,
    query_of,
    render_run_table,
)

_PAGE_ROWS = 100
_REFRESH_SECONDS = 4.0
_LEAD = (
    '<h2>Runs</h2><p class="lead">Pick a row to see more. Tick two or more to lay their curves over each other and see '
    "only what differs.</p>"
)
_COMPARISON = "<h2>Side by side</h2>"


class RunsTab:
    """Lays out the Runs tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        gr.HTML(_LEAD)
        with gr.Row(equal_height=False, elem_id="runs-search-row"):
            self.words = gr.Textbox(
                label="Search",
                placeholder="name, model, method, data, tag …",
                scale=3,
                min_width=220,
                elem_id="runs-search",
            )
            self.state = gr.Dropdown(
                list(FILTERS), value="All", label="State", scale=1, min_width=150, elem_id="runs-state"
            )
            self.order = gr.Dropdown(
                list(ORDERS), value=next(iter(ORDERS)), label="Order", scale=1, min_width=200, elem_id="runs-order"
            )
        self.table = pick_list(NO_RUNS, elem_id="runs-table")
        with gr.Column(visible=False, elem_id="comparison") as self.comparison:
            gr.HTML(_COMPARISON)
            self.overlay = chart(elem_id="overlay-chart")
            with gr.Row(elem_classes="chart-controls"):
                self.against = gr.Radio(
                    [("by step", "step"), ("by tokens", "tokens"), ("by time", "time")],
                    value="step", show_label=False, container=False, elem_id="overlay-against",
                )  # fmt: skip
                self.log_axis = gr.Checkbox(False, label="Logarithmic axis", container=False, elem_id="overlay-log")
            self.differences = gr.HTML(elem_id="differences")
        with gr.Column(visible=False, elem_id="run-details") as self.panel:
            self.details = gr.HTML()
            with gr.Row(elem_id="run-actions"):
                self.to_train = gr.Button("Open in Train", scale=0, min_width=140, elem_id="run-to-train")
                self.to_chat = gr.Button("Open in Chat", scale=0, min_width=140, elem_id="run-to-chat")
                self.duplicate = gr.Button("Duplicate into the form", scale=0, min_width=230, elem_id="run-duplicate")
                self.delete = gr.Button("Delete …", scale=0, min_width=110, elem_id="run-delete")
            with gr.Column(visible=False, elem_id="confirm-delete") as self.confirm:
                self.warning = gr.HTML()
                with gr.Row():
                    self.really = gr.Button(
                        "Delete for good", variant="stop", scale=0, min_width=150, elem_id="really-delete"
                    )
                    self.keep = gr.Button("Keep it", scale=0, min_width=110)
        self._compared = gr.State([])
        self._shown = gr.State(_PAGE_ROWS)
        self._last = gr.State("")
        self._change = gr.State({})
        self.timer = gr.Timer(_REFRESH_SECONDS, active=False)

    def wire(self) -> None:
        """Connect the events."""
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        query = [self.words, self.state, self.order]
        listing = [*query, page.chosen_run, self._compared, self._shown]
        table = [self.table, self._last]
        gr.on(page.elsewhere(self._tab), lambda: gr.update(active=False), None, self.timer, **quick)
        arrived = self._tab.select(lambda: gr.update(active=True), None, self.timer, **quick)
        arrived.then(self.list_runs, [*listing, self._last], table, **quick)
        self.timer.tick(self.list_runs, [*listing, self._last], table, trigger_mode="once", **quick)
        gr.on(
            [self.words.input, self.state.input, self.order.input],
            self.list_runs, [*listing, self._last], table, trigger_mode="always_last", **quick,
        )  # fmt: skip
        taken = self.table.click(
            self._take,
            [self._compared, self._shown],
            [page.chosen_run, self._compared, self._shown],
            **quick,
        )
        taken.then(self.list_runs, [*listing, self._last], table, **quick)
        detailed = [self.panel, self.details, self.to_chat, self.delete, self.confirm]
        taken.then(self.describe, page.chosen_run, detailed, **quick)
        comparing = [self._compared, self.against, self.log_axis]
        compared = [self.comparison, self.overlay, self.differences]
        taken.then(self.compare, comparing, compared, **quick)
        gr.on([self.against.input, self.log_axis.input], self.compare, comparing, compared, **quick)
        for button, tab in ((self.to_train, "train"), (self.to_chat, "chat")):
            page.open_tab(button.click(lambda: None, None, None, **quick), tab)
        copied = self.duplicate.click(
            shown_as_message(self._configuration),
            page.chosen_run,
            self._change,
            show_progress="hidden",
            api_visibility="private",
        )
        filled = page.fill_after(copied, self._change)
        page.open_tab(filled, "method")
        self.delete.click(self._ask_delete, page.chosen_run, [self.confirm, self.warning], **quick)
        self.keep.click(lambda: gr.update(visible=False), None, self.confirm, **quick)
        deleted = self.really.click(
            shown_as_message(self._delete),
            [page.chosen_run, self._compared],
            [page.chosen_run, self._compared, self.panel],
            trigger_mode="once", show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        deleted.then(self.list_runs, [*listing, self._last], table, **quick)
        deleted.then(self.compare, comparing, compared, **quick)

    def list_runs(
        self, words: str, state: str, order: str, chosen: str, compared: list[str], shown: int, last: str
    ) -> tuple[Any, Any]:
        """The table; nothing is sent where it would look the same."""
        rows = self._page.reader.summaries()
        found = select_runs(rows, query_of(words, state, order))
        nothing = NOTHING_FOUND if rows else NO_RUNS
        html = render_run_table(found, chosen, compared, shown) if found else nothing
        return (gr.skip(), gr.skip()) if html == last else (html, html)

    def describe(self, run_id: str) -> tuple[Any, Any, Any, Any, Any]:
        """Details of the picked run, and what can be done with it."""
        gone = gr.update(visible=False)
        if not self._page.reader.exists(run_id):
            return gone, "", gone, gone, gone
        try:
            observed = self._page.reader.observe(run_id)
            row = self._page.reader.summary(run_id)
            on_disk = size(folder_size_bytes(observed.run.folder.path))
            html = render_run_details(observed, row, on_disk)
        except EngineError as error:
            return gr.update(visible=True), trouble(error), gone, gone, gone
        can_delete = observed.state.is_final and not observed.resume_requested
        return (
            gr.update(visible=True),
            html,
            gr.update(visible=observed.can_be_talked_to),
            gr.update(visible=can_delete),
            gone,
        )

    def compare(self, compared: list[str], against: Any, log_axis: bool) -> tuple[Any, Any, Any]:
        """Curves over each other and the settings that differ; hidden below two runs."""
        runs, histories = [], []
        for run_id in compared:
            try:
                observed = self._page.reader.observe(run_id)
                runs.append(ComparedRun(self._page.reader.summary(run_id), observed.config))
                histories.append(NamedHistory(f"{observed.title} · {observed.run.id[-4:]}", observed.history))
            except EngineError:
                continue  # it was deleted meanwhile
        if len(runs) < 2:
            return gr.update(visible=False), "", ""
        view = ChartView(log_axis=log_axis, against=against)
        return gr.update(visible=True), overlay_figure(histories, view), render_differences(runs)

    def _take(self, event: gr.EventData, compared: list[str], shown: int) -> tuple[Any, Any, Any]:
        wanted = picked(event)
        if wanted == MORE:
            return gr.skip(), gr.skip(), shown + _PAGE_ROWS
        run_id = wanted.removeprefix(COMPARE_PREFIX)
        if not self._page.reader.exists(run_id):
            return gr.skip(), gr.skip(), gr.skip()
        if not wanted.startswith(COMPARE_PREFIX):
            return run_id, gr.skip(), gr.skip()
        if run_id in compared:
            return gr.skip(), [other for other in compared if other != run_id], gr.skip()
        if len(compared) >= COMPARED_AT_MOST:
            gr.Info(f"{COMPARED_AT_MOST} runs at most are told apart well; take one out first.")
            return gr.skip(), gr.skip(), gr.skip()
        return gr.skip(), [*compared, run_id], gr.skip()

    def _configuration(self, run_id: str) -> dict[str, Any]:
        config = self._page.services.runs.get(run_id).folder.read_config()
        # Where the model cannot be read the Model tab says so; the settings are copied all the same.
        with contextlib.suppress(EngineError):
            self._page.services.shapes.learn(config.model)
        mapping = config.model_dump(mode="json")
        return {**mapping, "run": {**mapping["run"], "name": ""}}

    def _ask_delete(self, run_id: str) -> tuple[Any, Any]:
        try:
            observed = self._page.reader.observe(run_id)
        except EngineError as error:
            return gr.update(visible=True), trouble(error)
        freed = size(folder_size_bytes(observed.run.folder.path))
        words = f"Its adapter, checkpoints, curves and log, {freed} in all, are removed from the disk. Nothing brings them back."
        return gr.update(visible=True), f'<p class="notice">{words}</p>'

    def _delete(self, run_id: str, compared: list[str]) -> tuple[Any, Any, Any]:
        freed = self._page.services.runs.delete(run_id)
        self._page.reader.forget(run_id)
        gr.Info(f"Deleted; {size(freed)} are free again.", duration=5)
        return "", [other for other in compared if other != run_id], gr.update(visible=False)

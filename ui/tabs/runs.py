"""Runs: search, show and compare all runs; order the queue; set the price of electricity."""

from contextlib import suppress
from html import escape
from typing import Any, get_args

import gradio as gr
from gradio.events import Dependency

from loratory.engine.accounts.people import Action, require
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import EngineError, RunError
from loratory.engine.export.merge import MergeJob, comparing_evaluations
from loratory.engine.runs.control import request_start_anyway, request_stop
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.run import FINAL_STATES
from loratory.engine.runs.store import folder_size_bytes
from loratory.engine.runs.summary import select_runs, summaries_csv
from loratory.engine.runs.sweep_result import sweep_result
from loratory.engine.runs.usage import Electricity, read_electricity, save_electricity
from loratory.engine.supervision.queue import QueueMove, QueueOrder
from loratory.ui import components as ui
from loratory.ui.form import component_of_field, number_of, text_of
from loratory.ui.gradio_internals import Dropdown, changed_by_hand, enclosing_tab
from loratory.ui.page import Page
from loratory.ui.tabs.notifications import NotificationsPart
from loratory.ui.tabs.one_run import OneRunPart
from loratory.ui.tabs.shared_runs import LabQueuePart, SharedRunsPart
from loratory.ui.views import run_table
from loratory.ui.views.comparison import curve_names, render_differences
from loratory.ui.views.html import plural, size, small, with_code
from loratory.ui.views.loss_chart import COMPARED_AT_MOST, ChartView, overlay_figure
from loratory.ui.views.sweep import render_sweep, sweep_figure

_PAGE_ROWS = 100
# A person may have gone back meanwhile.
_UNLESS_LEFT = "(view, ...rest) => [location.pathname.includes('/runs/') ? view : '', ...rest]"
_SHOW_COMPARISON = "() => document.getElementById('comparison').scrollIntoView()"
_NAMED_RUNS = 5  # at most, in the question before a deletion


class RunsTab:
    """Lays out the Runs tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.tab = enclosing_tab()
        self._order = QueueOrder(page.services.home)
        self.queue = ui.pick_list(elem_id="queue")
        if (board := page.services.board) is not None:
            LabQueuePart(page.services, board)
        lead = "Pick a row for its details. Tick rows to compare their curves and settings, or to delete them."
        filters = '<details id="runs-filters" class="fold"><summary>Search, filter and sort</summary></details>'
        gr.HTML(f'<h2>Runs</h2><p class="lead">{lead}</p>{filters}')
        with gr.Row(equal_height=False, elem_id="runs-search-row"):
            self.search = gr.Textbox(
                label="Search", placeholder="name, model, method, data, tag …", scale=3, min_width=220,
                elem_id="runs-search",
            )  # fmt: skip
            self.state, self.method, self.model, self.order = (
                Dropdown(list(choices), value=choices[0], label=label, scale=1, min_width=width, elem_id=elem_id)
                for label, choices, width, elem_id in (
                    ("Filter", (*run_table.FILTERS, run_table.STARRED), 130, "runs-state"),
                    ("Method", (run_table.ANY_METHOD,), 160, "runs-method"),
                    ("Model", (run_table.ANY_MODEL,), 150, "runs-model"),
                    ("Order", tuple(run_table.ORDERS), 190, "runs-order"),
                )
            )
        self.table = ui.pick_list(run_table.NO_RUNS, elem_id="runs-table")
        with gr.Row(elem_id="runs-below", visible=False) as self.below:
            self.to_comparison = gr.Button("Compare", variant="primary", scale=0, visible=False, elem_id="runs-compare")
            self.merge = gr.Button("Merge adapters", scale=0, min_width=150, visible=False, elem_id="runs-merge")
            self.csv = gr.Button("Save as CSV", scale=0, min_width=200, elem_id="runs-csv")
            self.delete = gr.Button("Delete ticked …", scale=0, min_width=150, visible=False, elem_id="runs-delete")
        ids = "confirm-delete-runs", "really-delete-runs", "keep-runs"
        self.confirm = ui.Confirmation("Delete runs", "Keep runs", ids)
        self._csv_text = gr.Textbox(visible=False)
        self.sweep = ui.pick_list(elem_id="sweep")  # of the chosen run
        self.sweep_chart = ui.chart(every_trace=True, elem_id="sweep-chart")
        with gr.Column(visible=False, elem_id="comparison") as self.comparison:
            gr.HTML("<h2>Comparison</h2>")
            self.overlay = ui.chart(elem_id="overlay-chart")
            self.log_axis = gr.Checkbox(False, label="Logarithmic axis", container=False, elem_id="overlay-log")
            self.differences = gr.HTML(elem_id="differences")
        self.one = OneRunPart(page)
        self.shared = SharedRunsPart(page, page.shared) if page.shared is not None else None
        self.electricity = ElectricityPart(page)
        NotificationsPart(page)
        self.ticked_runs = gr.State([])
        self.named_runs = gr.State([])  # which the question before a deletion names
        self.shown_rows = gr.State(_PAGE_ROWS)
        self.last = gr.State(None)  # the listing that the page shows
        self.timer = gr.Timer(4.0, active=False)
        self._query = [self.search, self.state, self.method, self.model, self.order]
        # Inputs and outputs of `list_runs`, and of `compare`.
        self._listing = (
            [*self._query, page.chosen_run, self.ticked_runs, self.shown_rows, self.last],
            [self.table, self.queue, self.state, self.method, self.model, self.order, self.last, self.below, self.to_comparison, self.merge, self.delete,
             self.sweep, self.sweep_chart],
        )  # fmt: skip
        self._comparing = ([self.ticked_runs, self.log_axis], [self.comparison, self.overlay, self.differences])

    def wire(self) -> None:
        """Connect the events."""
        page = self.page
        page.pause_timers(self.tab, self.timer)
        self.tab.select(self.list_runs, *self._listing, **ui.QUICK)
        arrival_event = self.tab.select(None, None, self.timer, js=ui.TIMER_ON, **ui.QUICK)
        self.one.refresh_after(arrival_event)
        self.timer.tick(self.list_runs, *self._listing, trigger_mode="once", **ui.QUICK)
        gr.on([changed_by_hand(part) for part in self._query], self.list_runs, *self._listing, **ui.LATEST)
        # Gradio drops a click whose event is under way: on a busy machine, a row that is picked after a tick.
        take_event = self.table.click(
            self.take, [*self._comparing[0], self.shown_rows, *self._query, *self.one.follow.view_inputs],
            [page.chosen_run, self.ticked_runs, self.shown_rows, self.order, *self._comparing[1], *self.one.outputs],
            trigger_mode="multiple", **ui.QUICK,
        )  # fmt: skip
        request = [page.wants_run, page.chosen_run, *self.one.follow.view_inputs]
        page.wants_run.change(self.show_requested, request, self.one.outputs, js=_UNLESS_LEFT, **ui.QUICK)
        self.to_comparison.click(None, None, None, js=_SHOW_COMPARISON, **ui.QUICK)
        merging = ui.shown_as_message(self.merge_ticked)
        self._list_after(self.merge.click(merging, self.ticked_runs, page.chosen_run, **ui.ONCE))
        self.log_axis.input(self.compare, *self._comparing, **ui.QUICK)
        question_event = self.delete.click(
            self.deletable, [self.ticked_runs, *self._query], self.named_runs, **ui.QUICK
        )
        self.confirm.wire(question_event.then, self.deletion_question, self.named_runs)
        delete_event = self.confirm.really.click(
            ui.shown_as_message(self.delete_named), [self.named_runs, self.ticked_runs, page.chosen_run],
            [page.chosen_run, self.ticked_runs, self.confirm.panel], **ui.ONCE,
        )  # fmt: skip
        self.confirm.close_by(take_event.then)  # it may be about other runs
        csv_event = self.csv.click(self.save_csv, self._query, self._csv_text, **ui.QUICK)
        csv_event.then(None, self._csv_text, self._csv_text, js=ui.script("save_csv"), **ui.QUICK)
        self._list_after(self.queue.click(ui.shown_as_message(self.order_queue), None, None, **ui.QUICK))
        self.one.copy_by(self.sweep.click, self.one.follow.configuration)
        self.electricity.wire(self.tab)
        if self.shared is not None:
            self.shared.wire(self.tab)
        self._list_after(take_event)
        for event in (delete_event, *self.one.wire(self.ticked_runs)):
            self._list_after(event)
            event.then(self.compare, *self._comparing, **ui.LATEST)

    def _list_after(self, event: Dependency) -> None:
        event.then(self.list_runs, *self._listing, **ui.LATEST)

    def list_runs(
        self, search: Any, state: Any, method: Any, model: Any, order: Any, chosen: str, ticked_ids: list[str], limit: int,
        last: list[Any] | None,
    ) -> ui.Updates:  # fmt: skip
        """Return the table, the queue and the choices, without what is equal to `last`."""
        rows, unread = self.page.reader.glance()
        matches = select_runs(rows, run_table.query_of(search, state, method, model, order))
        nothing = run_table.NOTHING_FOUND if rows else run_table.NO_RUNS
        table = run_table.render_run_table(matches, chosen, ticked_ids, limit, str(order)) if matches else nothing
        waiting = {row.id: row for row in rows if row.state == "queued"}
        deletable = self.deletable(ticked_ids, search, state, method, model, order)
        names = ("method", "model", "project")
        methods, models, projects = (sorted({getattr(row, name) for row in rows} - {""}) for name in names)
        filters = [*run_table.FILTERS, run_table.STARRED, *(run_table.PROJECT_PREFIX + name for name in projects)]
        sweep = sweep_result(rows, next((row.sweep for row in rows if row.id == chosen), ""))
        listing: ui.Updates = {
            self.table: table + run_table.render_unread(unread),
            self.queue: run_table.render_queue([waiting[run_id] for run_id in self._order.sort(list(waiting))]),
            self.state: gr.update(choices=filters if state in filters else [*filters, state]),
            self.method: gr.update(choices=[run_table.ANY_METHOD, *methods]),
            self.model: gr.update(choices=[run_table.ANY_MODEL, *models]),
            self.order: gr.update(
                choices=[*dict.fromkeys((*run_table.ORDERS, *run_table.orders_by_test(rows), order))]
            ),
            self.below: ui.visible_if(bool(rows)),
            self.to_comparison: gr.update(
                value=f"Compare {plural(min(len(ticked_ids), COMPARED_AT_MOST), 'run')}", visible=len(ticked_ids) > 1
            ),
            self.merge: ui.visible_if(len(ticked_ids) > 1),
            self.delete: gr.update(value=f"Delete {plural(len(deletable), 'run')} …", visible=bool(deletable)),
            self.sweep: render_sweep(sweep) if sweep is not None else "",
            self.sweep_chart: sweep_figure(sweep) if sweep is not None else "",
        }
        fresh = list(listing.values())
        if fresh == last:
            return ui.UNCHANGED
        last_rows = dict(zip(listing, last or (), strict=False))
        return {self.last: fresh, **{part: new for part, new in listing.items() if last_rows.get(part) != new}}

    def show_requested(self, wants_run: str, run_id: str, *how: Any) -> ui.Updates:
        """Show the run that an address names."""
        return self.one.show(run_id, *how) if wants_run.startswith("details") else ui.UNCHANGED

    def save_csv(self, search: Any, state: Any, method: Any, model: Any, order: Any) -> str:
        """Return all filtered runs with all columns as CSV."""
        query = run_table.query_of(search, state, method, model, order)
        return summaries_csv(select_runs(self.page.reader.summaries(), query))

    def compare(self, ticked_ids: list[str], log_axis: bool) -> ui.Updates:
        """Return the curves in one chart and the differing settings; hidden for fewer than two runs."""
        rows, snapshots = [], []
        configs: dict[str, RunConfig] = {}
        for run_id in ticked_ids[:COMPARED_AT_MOST]:
            try:
                snapshot = self.page.reader.observe(run_id)
                row = self.page.reader.summary(run_id)
            except EngineError:
                continue  # it was deleted meanwhile
            rows.append(row)
            configs |= {row.id: snapshot.config} if snapshot.config is not None else {}
            snapshots.append(snapshot)
        if len(rows) < 2:
            return {self.comparison: ui.HIDDEN, self.overlay: "", self.differences: ""}
        names, costs = curve_names(rows, configs), map(self.page.reader.cost, snapshots)
        runs = list(zip(names, (snapshot.history for snapshot in snapshots), costs, strict=True))
        return {
            self.comparison: gr.update(visible=True),
            self.overlay: overlay_figure(runs, ChartView(log_axis=log_axis)),
            self.differences: render_differences(rows, configs, read_electricity(self.page.services.home))
            + (small(f"Only the first {COMPARED_AT_MOST} are compared.") if len(ticked_ids) > COMPARED_AT_MOST else ""),
        }

    def take(self, event: gr.EventData, ticked_ids: list[str], log_axis: bool, limit: int, *values: Any) -> ui.Updates:
        """Do what a click in the table asks for."""
        pick, query, how = ui.picked_value(event), values[: len(self._query)], values[len(self._query) :]
        if pick == run_table.MORE:
            return {self.shown_rows: limit + _PAGE_ROWS}
        if pick == run_table.ALL:
            matches = select_runs(self.page.reader.glance().rows, run_table.query_of(*query))[:limit]
            return self._tick([] if ticked_ids else [row.id for row in matches], log_axis)
        if pick.startswith(run_table.SORT_PREFIX):
            order = run_table.order_of(
                pick.removeprefix(run_table.SORT_PREFIX), str(query[-1]), self.page.reader.glance().rows
            )
            return {self.order: order} if order else ui.UNCHANGED
        run_id = pick.removeprefix(run_table.COMPARE_PREFIX).removeprefix(run_table.STAR_PREFIX)
        if not self.page.reader.exists(run_id):
            return ui.UNCHANGED
        if pick.startswith(run_table.STAR_PREFIX):
            ui.shown_as_message(self.one.follow.edit)(pick)
            return self.one.show(run_id, *how) if run_id == how[-1] else ui.UNCHANGED
        if not pick.startswith(run_table.COMPARE_PREFIX):
            return {self.page.chosen_run: run_id, **self.one.show(run_id, *how)}
        # In place: the next tick may be read before this answer is written.
        (ticked_ids.remove if run_id in ticked_ids else ticked_ids.append)(run_id)
        return self._tick(ticked_ids, log_axis)

    def _tick(self, run_ids: list[str], log_axis: bool) -> ui.Updates:
        return {self.ticked_runs: run_ids, **self.compare(run_ids, log_axis)}

    def merge_ticked(self, ticked_ids: list[str]) -> str:
        """Merge the adapters of the ticked runs in equal shares, and let parts and merge answer their test sets."""
        services = self.page.services
        parts = [services.runs.get(run_id) for run_id in ticked_ids if self.page.reader.exists(run_id)]
        require(services.person, Action.START)
        require_disk_space(services.home, services.home.owner)
        merged = MergeJob(services.home, services.runs, parts, [1 / (len(parts) or 1)] * len(parts)).run()
        services.log("runs merged", merged.id)
        for run, request in comparing_evaluations([merged, *parts]):
            with suppress(RunError):  # it is being measured already
                services.results.measure(run, None, request.settings, tests=request.tests)
        gr.Info(
            "The merge is a run of its own. Test sets of its parts are answered by all of them, one after the other.",
            duration=8,
        )
        return merged.id

    def deletable(self, ticked_ids: list[str], *query: Any) -> list[str]:
        """Return the ticked runs that have ended and that the search shows."""
        rows = select_runs(self.page.reader.glance().rows, run_table.query_of(*query))
        return [row.id for row in rows if row.id in ticked_ids and row.state in FINAL_STATES]

    def deletion_question(self, run_ids: list[str]) -> tuple[str, str]:
        """Return the number of runs and the question before they are deleted, with their names and size."""
        reader = self.page.reader
        runs = [self.page.services.runs.get(run_id) for run_id in run_ids if reader.exists(run_id)]
        names = [escape(f"“{reader.summary(run.id).label}”") for run in runs[:_NAMED_RUNS]]
        more = f" and {len(runs) - len(names)} more" if len(runs) > len(names) else ""
        size_words = size(sum(folder_size_bytes(run.folder.path) for run in runs))
        effect = f"will be deleted: {', '.join(names)}{more}. Adapters, checkpoints, curves and logs are {size_words} in all."
        return plural(len(runs), "run"), f"{effect} This cannot be undone."

    def delete_named(self, run_ids: list[str], ticked_ids: list[str], chosen: str) -> ui.Updates:
        """Delete the runs that the question named; one that was resumed since stays."""
        runs, reader, freed_bytes = self.page.services.runs, self.page.reader, 0
        remaining: list[str] = []
        trouble: EngineError | None = None
        for run_id in filter(reader.exists, run_ids):
            try:
                freed_bytes += runs.delete(run_id)
            except EngineError as error:
                trouble, remaining = error, [*remaining, run_id]
            else:
                self.page.services.log("run deleted", run_id)
                reader.forget(run_id)
        if trouble is not None:
            gr.Warning(with_code(str(trouble)), title=f"{plural(len(remaining), 'run')} not deleted", duration=12)
        if freed_bytes:
            gr.Info(f"Deleted; {size(freed_bytes)} freed.", duration=5)
        deleted = set(run_ids) - set(remaining)
        return {
            self.page.chosen_run: "" if chosen in deleted else ui.UNCHANGED,
            self.ticked_runs: [run_id for run_id in ticked_ids if run_id not in deleted],
            self.confirm.panel: ui.HIDDEN,
        }

    def order_queue(self, event: gr.EventData) -> None:
        action, _, run_id = ui.picked_value(event).partition(":")
        reader = self.page.reader
        if not reader.exists(run_id):
            return
        run = self.page.services.runs.get(run_id)
        moves: dict[str, QueueMove] = {move: move for move in get_args(QueueMove)}
        if action in moves:
            waiting = [row.id for row in reader.summaries() if row.state == "queued"]
            if run.id in waiting:
                self._order.shift(run.id, waiting, moves[action])
                self.page.services.log("run moved", run.id)
        elif action == "anyway":
            request_start_anyway(run)
            self.page.services.log("run started", run.id)
        elif action == "out":
            request_stop(run)
            self.page.services.log("run stopped", run.id)
        reader.invalidate()


class ElectricityPart:
    """Lays out price, currency and power of electricity, which give the cost of every run."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Accordion("Electricity", open=False, elem_id="electricity"):
            with gr.Row():
                self.inputs = [
                    component_of_field(Electricity.model_fields[name], min_width=180, elem_id=f"electricity-{name}")
                    for name in ("price_per_kwh", "currency", "watts")
                ]
            self.save = gr.Button("Save", scale=0, min_width=110, elem_id="electricity-save")

    def wire(self, tab: gr.Tab) -> None:
        """Connect the events."""
        tab.select(self.read_values, None, self.inputs, **ui.QUICK)
        self.save.click(ui.shown_as_message(self.save_values), self.inputs, None, **ui.SLOW)

    def read_values(self) -> list[Any]:
        electricity = read_electricity(self.page.services.home)
        return [text_of(electricity.price_per_kwh), electricity.currency, text_of(electricity.watts)]

    def save_values(self, price_per_kwh: Any, currency: Any, watts: Any) -> None:
        save_electricity(self.page.services.home, number_of(price_per_kwh), currency, number_of(watts))
        gr.Info("Saved.", duration=4)

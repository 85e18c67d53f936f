"""Runs: everything that was ever started; found, looked at, compared, exported."""

from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from engine.errors import EngineError
from engine.runs.electricity import read_electricity
from engine.runs.summary import RunSummary
from engine.runs.table import select_runs, summaries_csv
from ui.chart import chart
from ui.components import Dropdown, Radio
from ui.fields import changed_by_hand
from ui.page import Page
from ui.pick import pick_list, picked
from ui.tabs.runs.electricity import ElectricityPart
from ui.tabs.runs.one_run import OneRunPart
from ui.tabs.runs.queue import QueuePart
from ui.views.loss_chart import COMPARED_AT_MOST, ChartView, NamedHistory, overlay_figure
from ui.views.run_details import ComparedRun, render_differences
from ui.views.run_table import (
    ANY_METHOD,
    ANY_MODEL,
    COMPARE_PREFIX,
    FILTERS,
    MORE,
    NO_RUNS,
    NOTHING_FOUND,
    ORDERS,
    TableQuery,
    query_of,
    render_run_table,
    render_unread,
)

_PAGE_ROWS = 100
_REFRESH_SECONDS = 4.0
_LEAD = (
    '<h2>Runs</h2><p class="lead">Pick a row to see all of it. Tick two or more to lay their curves over each other and '
    "see only what differs.</p>"
)
_COMPARISON = "<h2>Side by side</h2>"
# The table is made on the server and saved by the browser, so that no file stays behind.
_SAVE_CSV = """(text) => {
  if (!text) return '';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'text/csv;charset=utf-8'}));
  link.download = 'loratory-runs.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return '';
}"""


class Listing(NamedTuple):
    """What one look at all runs puts on the page."""

    table: Any
    queue: Any
    method: Any
    model: Any
    last: Any


class RunsTab:
    """Lays out the Runs tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        self.queue = QueuePart(page)
        gr.HTML(_LEAD)
        with gr.Row(equal_height=False, elem_id="runs-search-row"):
            self.words = gr.Textbox(
                label="Search",
                placeholder="name, model, method, data, tag …",
                scale=3,
                min_width=220,
                elem_id="runs-search",
            )
            self.state = Dropdown(
                list(FILTERS), value="All", label="State", scale=1, min_width=130, elem_id="runs-state"
            )
            self.method = Dropdown(
                [ANY_METHOD], value=ANY_METHOD, label="Method", scale=1, min_width=160, elem_id="runs-method"
            )
            self.model = Dropdown(
                [ANY_MODEL], value=ANY_MODEL, label="Model", scale=1, min_width=150, elem_id="runs-model"
            )
            self.order = Dropdown(
                list(ORDERS), value=next(iter(ORDERS)), label="Order", scale=1, min_width=190, elem_id="runs-order"
            )
        self.table = pick_list(NO_RUNS, elem_id="runs-table")
        with gr.Row(elem_id="runs-below", visible=False) as self.below:
            self.csv = gr.Button("Save this table as CSV", scale=0, min_width=200, elem_id="runs-csv")
        self._csv_text = gr.Textbox(visible=False)
        with gr.Column(visible=False, elem_id="comparison") as self.comparison:
            gr.HTML(_COMPARISON)
            self.overlay = chart(elem_id="overlay-chart")
            with gr.Row(elem_classes="chart-controls"):
                self.against = Radio(
                    [("by step", "step"), ("by tokens", "tokens"), ("by time", "time")],
                    value="step", show_label=False, container=False, elem_id="overlay-against",
                )  # fmt: skip
                self.log_axis = gr.Checkbox(False, label="Logarithmic axis", container=False, elem_id="overlay-log")
            self.differences = gr.HTML(elem_id="differences")
        self.one = OneRunPart(page)
        self.electricity = ElectricityPart(page)
        self._compared = gr.State([])
        self._shown = gr.State(_PAGE_ROWS)
        self._last: gr.State = gr.State(None)
        self.timer = gr.Timer(_REFRESH_SECONDS, active=False)

    @property
    def _query(self) -> list[Any]:
        return [self.words, self.state, self.method, self.model, self.order]

    def wire(self) -> None:
        """Connect the events."""
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        gr.on(page.elsewhere(self._tab), lambda: gr.update(active=False), None, self.timer, **quick)
        inputs, outputs = self._listing
        self._tab.select(self.list_runs, inputs, outputs, **quick)
        arrived = self._tab.select(lambda: gr.update(active=True), None, self.timer, **quick)
        self.one.show_after(arrived, again=True)
        self.timer.tick(self.list_runs, inputs, outputs, trigger_mode="once", **quick)
        changed = [changed_by_hand(part) for part in self._query]
        gr.on(changed, self.list_runs, inputs, outputs, trigger_mode="always_last", **quick)
        taken = self.table.click(
            self._take,
            [self._compared, self._shown],
            [page.chosen_run, self._compared, self._shown],
            **quick,
        )
        self._list_after(taken)
        self.one.show_after(taken, again=False)
        self._compare_after(taken)
        gr.on(
            [self.against.input, self.log_axis.input],
            self.compare,
            [self._compared, self.against, self.log_axis],
            [self.comparison, self.overlay, self.differences],
            **quick,
        )
        made = self.csv.click(self.save_csv, self._query, self._csv_text, **quick)
        made.then(None, self._csv_text, self._csv_text, js=_SAVE_CSV, **quick)
        self._list_after(self.queue.wire())
        self.electricity.wire()
        saved, deleted = self.one.wire(self._compared)
        for event in (saved, deleted):
            self._list_after(event)
            self._compare_after(event)

    @property
    def _listing(self) -> tuple[list[Any], list[Any]]:
        inputs = [*self._query, self._page.chosen_run, self._compared, self._shown, self._last]
        return inputs, [self.table, self.queue.list, self.method, self.model, self._last, self.below]

    def _list_after(self, event: Dependency) -> None:
        inputs, outputs = self._listing
        event.then(self.list_runs, inputs, outputs, show_progress="hidden", queue=False, api_visibility="private")

    def _compare_after(self, event: Dependency) -> None:
        event.then(
            self.compare,
            [self._compared, self.against, self.log_axis],
            [self.comparison, self.overlay, self.differences],
            show_progress="hidden", queue=False, api_visibility="private",
        )  # fmt: skip

    def list_runs(
        self, words: Any, state: Any, method: Any, model: Any, order: Any, chosen: str, compared: list[str], shown: int,
        last: Listing | None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The table, the queue and the choices; what would look the same is not sent."""
        rows, unread = self._page.reader.glance()
        found = select_runs(rows, query_of(TableQuery(words, state, method, model, order)))
        nothing = NOTHING_FOUND if rows else NO_RUNS
        table = render_run_table(found, chosen, compared, shown) if found else nothing
        fresh = Listing(
            table=table + render_unread(unread),
            queue=self.queue.draw(rows),
            method=tuple(sorted({row.method for row in rows if row.method})),
            model=tuple(sorted({row.model for row in rows if row.model})),
            last=bool(rows),
        )
        if fresh == last:
            return (gr.skip(),) * 6
        new = {name: getattr(last, name, None) != value for name, value in fresh._asdict().items()}
        return (
            fresh.table if new["table"] else gr.skip(),
            fresh.queue if new["queue"] else gr.skip(),
            gr.update(choices=[ANY_METHOD, *fresh.method]) if new["method"] else gr.skip(),
            gr.update(choices=[ANY_MODEL, *fresh.model]) if new["model"] else gr.skip(),
            fresh,
            gr.update(visible=bool(rows)) if new["last"] else gr.skip(),
        )

    def save_csv(self, words: Any, state: Any, method: Any, model: Any, order: Any) -> str:
        """Every run that the filters leave, with every column."""
        query = query_of(TableQuery(words, state, method, model, order))
        return summaries_csv(select_runs(self._page.reader.summaries(), query))

    def compare(self, compared: list[str], against: Any, log_axis: bool) -> tuple[Any, Any, Any]:
        """Curves over each other and the settings that differ; hidden below two runs."""
        runs, histories = [], []
        for run_id in compared:
            try:
                observed = self._page.reader.observe(run_id)
                row: RunSummary = self._page.reader.summary(run_id)
            except EngineError:
                continue  # it was deleted meanwhile
            runs.append(ComparedRun(row, observed.config, observed.provenance.dataset_fingerprint))
            histories.append(NamedHistory(f"{observed.title} · {observed.run.id[-4:]}", observed.history))
        if len(runs) < 2:
            return gr.update(visible=False), "", ""
        view = ChartView(log_axis=log_axis, against=against)
        differences = render_differences(runs, read_electricity(self._page.services.home))
        return gr.update(visible=True), overlay_figure(histories, view), differences

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

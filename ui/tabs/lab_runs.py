"""Parts of the Lab tab: devices and queue with an admin's actions, usage by week, and the model cache."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from loratory.engine.errors import RunError
from loratory.ui import components as ui
from loratory.ui.backend.lab import Caller, LabAdmin
from loratory.ui.page import Page
from loratory.ui.views import lab as views
from loratory.ui.views.html import notice, size
from loratory.ui.views.lab import LOOK_PREFIX, STOP_PREFIX, TURN, URGENT_PREFIX, render_devices, render_queue


class LabRunsPart:
    """Lays out the devices and the queue; `wire` connects them."""

    def __init__(self, page: Page, admin: LabAdmin) -> None:
        self.page = page
        self._admin = admin
        gr.HTML("<h2>Devices and queue</h2>")
        self.devices = gr.HTML(elem_id="lab-devices")
        self.active = ui.pick_list(elem_id="lab-active")
        self.run_key = gr.Textbox("", visible=False)  # owner/run-id of the run that may become urgent
        with gr.Column(visible=False, elem_id="lab-urgent") as self.panel:
            self.question = gr.HTML()
            self.why = gr.Textbox(
                label="Reason", info="Shown to everyone in the queue.", placeholder="paper deadline on Friday",
                max_length=120, lines=1, max_lines=1, elem_id="lab-urgent-why",
            )  # fmt: skip
            with gr.Row():
                self.confirm = gr.Button("Make urgent", scale=0, min_width=150, elem_id="lab-urgent-yes")
                self.cancel = gr.Button("Cancel", scale=0, min_width=150, elem_id="lab-urgent-no")
        self.outputs = [self.devices, self.active]

    def wire(self, log_after: Callable[[Any], None]) -> None:
        """Connect the events; `log_after` redraws the audit log after a logged action."""
        page = self.page
        panel = [self.panel, self.question, self.run_key, self.why]
        action_outputs = [*self.outputs, *panel, page.other_run, page.tabs]
        log_after(self.active.click(ui.shown_as_message(self._act), None, action_outputs, **ui.SLOW))
        action_inputs = [self.run_key, self.why]
        for event in (self.confirm.click, self.why.submit):
            log_after(event(ui.shown_as_message(self._make_urgent), action_inputs, [*self.outputs, *panel], **ui.SLOW))
        self.cancel.click(lambda: ui.HIDDEN, None, self.panel, **ui.QUICK)

    def show(self) -> ui.Updates:
        """Return the devices and the queue as they are now."""
        entries = self._admin.queue()
        return {
            self.devices: render_devices(self._admin.devices(), entries),
            self.active: render_queue(entries, self._admin.name, manages=True),
        }

    def _act(self, event: gr.EventData, request: gr.Request) -> ui.Updates:
        """Run the action of a row's button; the run's name is untrusted and looked up."""
        name, caller = ui.picked_value(event), Caller.from_request(request)
        if name.startswith(LOOK_PREFIX):
            return {self.page.other_run: name.removeprefix(LOOK_PREFIX), self.page.tabs: gr.Tabs(selected="runs")}
        if name.startswith(URGENT_PREFIX):
            return self._urgent_question(name.removeprefix(URGENT_PREFIX))
        if name == TURN:
            self._admin.clear_urgent(caller)
        elif name.startswith(STOP_PREFIX):
            self._admin.stop(caller, name.removeprefix(STOP_PREFIX))
            gr.Info("The run was asked to save and stop.", duration=4)
        return {**self.show(), self.panel: ui.HIDDEN}

    def _urgent_question(self, name: str) -> ui.Updates:
        owner, _, run_id = name.partition("/")
        if name not in {f"{entry.owner}/{entry.run_id}" for entry in self._admin.queue()}:
            raise RunError("There is no such run.", "Reload the list.")
        text = f"Start run {run_id[-4:]} of {owner} next? Only one run can be urgent."
        return {self.panel: ui.visible_if(True), self.question: notice(text), self.run_key: name, self.why: ""}

    def _make_urgent(self, name: Any, why: Any, request: gr.Request) -> ui.Updates:
        self._admin.make_urgent(Caller.from_request(request), str(name), str(why or ""))
        gr.Info("The run starts next.", duration=4)
        return {**self.show(), self.panel: ui.HIDDEN, self.run_key: ""}


class LabUsagePart:
    """Lays out charts and a table of usage; `wire` connects them."""

    def __init__(self, admin: LabAdmin) -> None:
        self._admin = admin
        gr.HTML("<h2>Usage</h2>")
        self.chart = ui.chart(
            "Nothing to show yet; usage is recorded from the first run on.", elem_id="lab-usage-chart"
        )
        self.usage = gr.HTML(elem_id="lab-usage")
        self.csv = gr.Button("Save as CSV", scale=0, min_width=200, elem_id="lab-csv")
        self._csv_text = gr.Textbox(visible=False)

    def wire(self, open_event: Any) -> None:
        """Connect the events; the usage is shown after `open_event`."""
        open_event.then(ui.shown_as_message(self._show), None, [self.usage, self.chart], **ui.SLOW)
        make_csv = ui.shown_as_message(lambda: views.usage_csv(self._admin.usage()))
        csv_event = self.csv.click(make_csv, None, self._csv_text, **ui.SLOW)
        csv_event.then(None, self._csv_text, self._csv_text, js=ui.script("save_csv"), **ui.QUICK)

    def _show(self) -> ui.Updates:
        usage = self._admin.usage()
        return {self.usage: views.render_usage(usage), self.chart: views.usage_figure(usage)}


class LabModelsPart:
    """Lays out the model cache; `wire` connects it. Nothing is removed automatically."""

    def __init__(self, admin: LabAdmin) -> None:
        self._admin = admin
        self.models = ui.pick_list(elem_id="lab-models")
        self.chosen = gr.State([])  # ids to remove once that is confirmed
        self.confirm = ui.Confirmation("Remove", "Keep", ("lab-models-confirm", "lab-models-yes", "lab-models-no"))

    def wire(self, open_event: Any, log_after: Callable[[Any], None]) -> None:
        """Connect the events; the cache is listed after `open_event`."""
        open_event.then(ui.shown_in_place(self._list), None, self.models, **ui.SLOW)
        confirm = self.confirm
        question_outputs = [self.chosen, confirm.panel, confirm.question, confirm.really]
        self.models.click(ui.shown_as_message(self._removal_question), None, question_outputs, **ui.SLOW)
        outputs = [confirm.panel, self.chosen]
        remove_event = confirm.really.click(ui.shown_as_message(self._remove), self.chosen, outputs, **ui.SLOW)
        log_after(remove_event.then(ui.shown_in_place(self._list), None, self.models, **ui.SLOW))
        confirm.close_by(confirm.cancel.click)

    def _list(self) -> str:
        return views.render_cache(self._admin.models())

    def _removal_question(self, event: gr.EventData) -> ui.Updates:
        cache, name = self._admin.models(), ui.picked_value(event)
        model_ids = cache.removable if name == views.OFFERED else (name.removeprefix(views.MODEL_PREFIX),)
        ids = [model.id for model in cache.models if model.id in model_ids and not model.use.needed_by]
        if not ids:
            return {self.confirm.panel: ui.HIDDEN, self.chosen: []}
        return {self.chosen: ids, **self.confirm.open(escape(views.models_question(ids, cache)), "Remove")}

    def _remove(self, ids: Any, request: gr.Request) -> ui.Updates:
        freed_bytes = self._admin.remove_models(Caller.from_request(request), [str(model_id) for model_id in ids or ()])
        gr.Info(f"{size(freed_bytes)} freed.", duration=4)
        return {self.confirm.panel: ui.HIDDEN, self.chosen: []}

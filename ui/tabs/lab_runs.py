"""Part of the Lab tab: all devices and runs, with an admin's actions."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from engine.errors import RunError
from ui.backend.lab import Caller, LabAdmin
from ui.components import HIDDEN, QUICK, Updates, pick_list, picked_value, shown_as_message, visible_if
from ui.page import Page
from ui.views.html import notice
from ui.views.lab import LOOK_PREFIX, STOP_PREFIX, TURN, URGENT_PREFIX, render_devices, render_queue


class LabRunsPart:
    """Lays out the devices and the queue; `wire` connects them."""

    def __init__(self, page: Page, admin: LabAdmin) -> None:
        self._page = page
        self._admin = admin
        gr.HTML("<h2>Devices and queue</h2>")
        self.devices = gr.HTML(elem_id="lab-devices")
        self.active = pick_list(elem_id="lab-active")
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
        page = self._page
        panel = [self.panel, self.question, self.run_key, self.why]
        action_outputs = [*self.outputs, *panel, page.other_run, page.tabs]
        log_after(self.active.click(shown_as_message(self._act), None, action_outputs, **QUICK))
        action_inputs = [self.run_key, self.why]
        for event in (self.confirm.click, self.why.submit):
            log_after(event(shown_as_message(self._make_urgent), action_inputs, [*self.outputs, *panel], **QUICK))
        self.cancel.click(lambda: HIDDEN, None, self.panel, **QUICK)

    def show(self) -> Updates:
        """Return the devices and the queue as they are now."""
        entries = self._admin.queue()
        return {
            self.devices: render_devices(self._admin.devices(), entries),
            self.active: render_queue(entries, self._admin.name, manages=True),
        }

    def _act(self, event: gr.EventData, request: gr.Request) -> Updates:
        """Run the action of a row's button; the run's name is untrusted and looked up."""
        name, caller = picked_value(event), Caller.of(request)
        if name.startswith(LOOK_PREFIX):
            return {self._page.other_run: name.removeprefix(LOOK_PREFIX), self._page.tabs: gr.Tabs(selected="runs")}
        if name.startswith(URGENT_PREFIX):
            return self._ask(name.removeprefix(URGENT_PREFIX))
        if name == TURN:
            self._admin.clear_urgent(caller)
        elif name.startswith(STOP_PREFIX):
            self._admin.stop(caller, name.removeprefix(STOP_PREFIX))
            gr.Info("The run was asked to save and stop.", duration=4)
        return {**self.show(), self.panel: HIDDEN}

    def _ask(self, name: str) -> Updates:
        owner, _, run_id = name.partition("/")
        if name not in {f"{one.owner}/{one.run_id}" for one in self._admin.queue()}:
            raise RunError("There is no such run.", "Reload the list.")
        text = f"Start run {run_id[-4:]} of {owner} next? Only one run can be urgent."
        return {self.panel: visible_if(True), self.question: notice(text), self.run_key: name, self.why: ""}

    def _make_urgent(self, name: Any, why: Any, request: gr.Request) -> Updates:
        self._admin.make_urgent(Caller.of(request), str(name), str(why or ""))
        gr.Info("The run starts next.", duration=4)
        return {**self.show(), self.panel: HIDDEN, self.run_key: ""}

"""Parts of the Lab tab: usage by week, and the model cache."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ui.backend.lab import Caller, LabAdmin
from ui.components import (
    HIDDEN,
    QUICK,
    SLOW,
    Updates,
    chart,
    pick_list,
    picked_value,
    save_csv_script,
    shown_as_message,
    shown_in_place,
    visible_if,
)
from ui.views import lab as views
from ui.views.html import notice, size


class LabUsagePart:
    """Lays out charts and a table of usage; `wire` connects them."""

    def __init__(self, admin: LabAdmin) -> None:
        self._admin = admin
        gr.HTML("<h2>Usage</h2>")
        self.chart = chart("Nothing to show yet; usage is recorded from the first run on.", elem_id="lab-usage-chart")
        self.usage = gr.HTML(elem_id="lab-usage")
        self.csv = gr.Button("Save as CSV", scale=0, min_width=200, elem_id="lab-csv")
        self._csv_text = gr.Textbox(visible=False)

    def wire(self, open_event: Any) -> None:
        """Connect the events; the usage is shown after `open_event`."""
        outputs = [self.usage, self.chart]
        open_event.then(shown_as_message(self._show), None, outputs, **SLOW)
        csv_event = self.csv.click(
            shown_as_message(lambda: views.usage_csv(self._admin.usage())), None, self._csv_text, **SLOW
        )
        csv_event.then(None, self._csv_text, self._csv_text, js=save_csv_script("loratory-usage.csv"), **QUICK)

    def _show(self) -> Updates:
        usage = self._admin.usage()
        return {self.usage: views.render_usage(usage), self.chart: views.usage_figure(usage)}


class LabModelsPart:
    """Lays out the model cache; `wire` connects it. Nothing is removed automatically."""

    def __init__(self, admin: LabAdmin) -> None:
        self._admin = admin
        self.models = pick_list(elem_id="lab-models")
        self.chosen = gr.State([])  # ids to remove once that is confirmed
        with gr.Column(visible=False, elem_id="lab-models-confirm") as self.panel:
            self.question = gr.HTML()
            with gr.Row():
                self.remove = gr.Button("Remove", variant="stop", scale=0, min_width=150, elem_id="lab-models-yes")
                self.keep = gr.Button("Keep", scale=0, min_width=150, elem_id="lab-models-no")

    def wire(self, open_event: Any, log_after: Callable[[Any], None]) -> None:
        """Connect the events; the cache is listed after `open_event`."""
        open_event.then(shown_in_place(self._list), None, self.models, **SLOW)
        ask_outputs = [self.chosen, self.panel, self.question]
        self.models.click(shown_as_message(self._ask), None, ask_outputs, **SLOW)
        remove_event = self.remove.click(shown_as_message(self._remove), self.chosen, [self.panel, self.chosen], **SLOW)
        list_event = remove_event.then(shown_in_place(self._list), None, self.models, **SLOW)
        log_after(list_event)
        self.keep.click(lambda: HIDDEN, None, self.panel, **QUICK)

    def _list(self) -> str:
        return views.render_cache(self._admin.models())

    def _ask(self, event: gr.EventData) -> Updates:
        cache, name = self._admin.models(), picked_value(event)
        model_ids = cache.offered if name == views.OFFERED else (name.removeprefix(views.MODEL_PREFIX),)
        ids = [one.id for one in cache.models if one.id in model_ids and not one.use.needed_by]
        if not ids:
            return {self.panel: HIDDEN, self.chosen: []}
        return {
            self.chosen: ids, self.panel: visible_if(True), self.question: notice(views.models_question(ids, cache)),
        }  # fmt: skip

    def _remove(self, ids: Any, request: gr.Request) -> Updates:
        freed_bytes = self._admin.remove_models(Caller.of(request), [str(one) for one in ids or ()])
        gr.Info(f"{size(freed_bytes)} freed.", duration=4)
        return {self.panel: HIDDEN, self.chosen: []}

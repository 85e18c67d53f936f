"""Measure: compare base and tuned on the held-out set, in the background, and across runs."""

from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.config.results import EvaluationConfig
from engine.errors import EngineError, RunError
from ui.backend.background import stamp
from ui.backend.results import Evaluations
from ui.backend.run_reader import FINAL
from ui.components import (
    HIDDEN,
    QUICK,
    SLOW,
    UNCHANGED,
    Updates,
    clear_error_after,
    look_after_start,
    pick_list,
    picked_value,
    shown_as_message,
    shown_in_place,
)
from ui.form import component_of_field, number_of, section_by_titles
from ui.page import Page
from ui.tabs.chat_choice import A_FOLDER, A_MODEL, ChatChoice, checkpoint_of, chosen_place
from ui.views import evaluation as view
from ui.views.html import work_status

_SETTINGS = ("max_rows", "answered_rows", "max_new_tokens", "general_text")
_STOPPED = "Stopped; nothing was saved."
_WITHOUT_RUN = "no run"


class EvaluatePart:
    """Lays out the evaluation; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice) -> None:
        self._page = page
        self._choice = choice
        self._evaluations = Evaluations(page.services.runs, page.reader)
        gr.HTML(
            '<p class="lead">Loss and perplexity on the held-out set, then on general text, then answers to some of its rows. A loaded model is unloaded '
            "first.</p>"
        )
        with gr.Row(equal_height=True, elem_id="measure-settings"):
            self._settings = [
                component_of_field(EvaluationConfig.model_fields[name], min_width=180, elem_id=f"measure-{name}")
                for name in _SETTINGS
            ]
        with gr.Row(elem_id="measure-buttons"):
            self.start = gr.Button("Measure", variant="primary", scale=0, min_width=170, elem_id="measure-start")
            self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="measure-stop")
        self.status = gr.HTML(elem_id="measure-status")
        self.result = gr.HTML(view.NOT_MEASURED, elem_id="measure-result")
        with gr.Column(visible=False, elem_id="measure-answers") as self.answers:
            with gr.Row(elem_id="measure-pages"):
                self.previous = gr.Button("← Worse", size="sm", scale=0, min_width=90, elem_id="measure-previous")
                self.next = gr.Button("Better →", size="sm", scale=0, min_width=90, elem_id="measure-next")
                self.where = gr.HTML(elem_id="measure-where")
            self.rows = gr.HTML(elem_id="measure-answered-rows")
        self.across = pick_list(elem_id="measure-across")
        self.number = gr.State(0)  # of the page of answered rows
        self.last_stamp = gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        self._target = [self._choice.run, self._choice.checkpoint]
        self._state_outputs = [
            self.last_stamp, self.number, self.status, self.start, self.stop, self.result, self.answers, self.where, self.rows,
            self.across, self.previous, self.next,
        ]  # fmt: skip

    def wire(self, open_event: Dependency, mode_event: Dependency, chosen: Dependency, mode: gr.Radio) -> None:
        """Connect the events of opening the tab, changing the mode and choosing a run."""
        page = [self.number, self.last_stamp]
        for event in (open_event, mode_event):
            awake = event.then(
                lambda mode: (gr.update(active=mode == "Measure"), ""), mode, [self.timer, self.last_stamp], **QUICK
            )
            self._look_after(awake)
        for event in (chosen, self._choice.checkpoint.input(lambda: "", None, self.last_stamp, **QUICK)):
            self._look_after(event.then(lambda: (0, ""), None, page, **QUICK))
        looking = [*self._target, *page]
        self.timer.tick(self.look, looking, self._state_outputs, trigger_mode="once", **QUICK)
        starting = [*self._target, self._choice.where, *self._settings]
        start_event = self.start.click(shown_in_place(self._start), starting, self.status, trigger_mode="once", **SLOW)
        self._look_after(look_after_start(start_event, self.status, self.last_stamp))
        clear_error_after(self.status, self._settings)
        self.stop.click(shown_as_message(self._stop), self._choice.run, None, **QUICK)
        for button, step in ((self.previous, -1), (self.next, 1)):
            page_event = button.click(lambda number, step=step: (max(0, number + step), ""), self.number, page, **QUICK)
            self._look_after(page_event)
        self._look_after(self.across.click(self._pick, None, [*self._choice.outputs, *page], **QUICK))

    def _look_after(self, event: Dependency) -> None:
        event.then(self.look, [*self._target, self.number, self.last_stamp], self._state_outputs, **QUICK)

    def look(self, run_id: str, checkpoint: str | None, number: int, last_stamp: str) -> Updates:
        """Return the evaluation's progress and result; no updates if nothing changed."""
        if run_id in (A_MODEL, A_FOLDER) or not self._page.reader.exists(run_id):
            return self._without_run(last_stamp)
        state = checkpoint_of(checkpoint)
        work = self._page.services.results.measuring.find(run_id)
        now = stamp(run_id, state, number, work.stamp if work else "", self._evaluations.stamp(run_id, state))
        if now == last_stamp:
            return UNCHANGED
        result = self._evaluations.read(run_id, state)
        working = work is not None and work.is_under_way
        pages = view.pages_of(result) if result is not None else 0
        number = min(number, max(0, pages - 1))
        updates: Updates = {
            self.last_stamp: now,
            self.number: number,
            self.status: work_status(work, _STOPPED),
            self.start: gr.update(value="Measure again" if result is not None else "Measure", interactive=not working),
            self.stop: gr.update(visible=working, interactive=not (work is not None and work.stopping)),
            self.result: "" if working else view.NOT_MEASURED,
            self.answers: gr.update(visible=pages > 0),
            self.where: view.page_words(result, number) if result is not None and pages else "",
            self.rows: view.render_answered(result, number) if result is not None else "",
            self.across: view.render_across(self._evaluations.across(), f"{run_id}/{state or FINAL}"),
            self.previous: gr.update(interactive=number > 0),
            self.next: gr.update(interactive=number < pages - 1),
        }
        if result is not None:
            updates[self.result] = view.render_evaluation(result)
        return updates

    def _without_run(self, last_stamp: str) -> Updates:
        if last_stamp == _WITHOUT_RUN:
            return UNCHANGED
        return {
            **dict.fromkeys((self.status, self.where, self.rows), ""),
            **dict.fromkeys((self.stop, self.answers), HIDDEN),
            **dict.fromkeys((self.start, self.previous, self.next), gr.update(interactive=False)),
            self.last_stamp: _WITHOUT_RUN,
            self.number: 0,
            self.result: view.NO_RESULT,
            self.across: view.render_across(self._evaluations.across(), ""),
        }

    def _start(self, run_id: str, checkpoint: str | None, where: str, *settings: Any) -> str:
        run = self._choice.run_of(run_id)
        pairs = zip(_SETTINGS, map(number_of, settings), strict=True)
        config = section_by_titles(EvaluationConfig, {name: value for name, value in pairs if value is not None})
        results, chat = self._page.services.results, self._page.services.chat
        present = results.measuring.find(run.id)
        if present is not None and present.is_under_way:
            raise RunError("An evaluation of this run is under way.", "Wait for its end, or stop it.")
        if chat.state.phase == "ready":
            chat.unload()
        return work_status(results.measure(run, checkpoint_of(checkpoint), config, chosen_place(where)), _STOPPED)

    def _stop(self, run_id: str) -> None:
        self._page.services.results.measuring.stop(self._choice.run_of(run_id).id)

    def _pick(self, event: gr.EventData) -> Updates:
        run_id, _, checkpoint = picked_value(event).partition("/")
        if not self._page.reader.exists(run_id):
            return UNCHANGED
        try:
            updates = self._choice.choose(run_id)
        except EngineError:
            return UNCHANGED
        states = updates[self._choice.checkpoint]
        if checkpoint in [value for _, value in states["choices"]]:
            updates[self._choice.checkpoint] = {**states, "value": checkpoint}
        return {self._choice.run: run_id, **updates, self.number: 0, self.last_stamp: ""}

"""Measure: compare base and tuned on the held-out set, in the background, and across runs."""

from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.config.results import EvaluationConfig
from ui.backend.results import Evaluations
from ui.backend.run_reader import FINAL
from ui.components import QUICK, UNCHANGED, Updates, pick_list, picked_value, visible_if
from ui.form import component_of_field, number_of, section_by_titles
from ui.job_panel import JobPanel
from ui.page import Page
from ui.tabs.chat_choice import ChatChoice, checkpoint_of, chosen_place
from ui.views import evaluation as view
from ui.views.html import ListPage

_SETTINGS = ("max_rows", "answered_rows", "max_new_tokens", "general_text")


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
        self.job = JobPanel(
            page.services.results.measuring, "Measure", "Stopped; nothing was saved.", name="measure", min_width=170,
            seconds=1.0, watch=self._evaluations.stamp,
        )  # fmt: skip
        self.result = gr.HTML(view.NOT_MEASURED, elem_id="measure-result")
        with gr.Column(visible=False, elem_id="measure-answers") as self.answers:
            with gr.Row(elem_id="measure-pages"):
                self.previous = gr.Button("← Worse", size="sm", scale=0, min_width=90, elem_id="measure-previous")
                self.next = gr.Button("Better →", size="sm", scale=0, min_width=90, elem_id="measure-next")
                self.where = gr.HTML(elem_id="measure-where")
            self.rows = gr.HTML(elem_id="measure-answered-rows")
        self.across = pick_list(elem_id="measure-across")
        self.number = gr.State(0)  # of the page of answered rows
        self._target = [self._choice.run, self._choice.checkpoint]
        self._outputs = [
            self.number, self.result, self.answers, self.where, self.rows, self.across, self.previous, self.next,
            *self.job.outputs,
        ]  # fmt: skip

    def wire(self, open_event: Dependency, mode_event: Dependency, chosen: Dependency) -> None:
        """Connect the events of opening the tab, changing the mode and choosing a run."""
        shown = [*self._target, self.number]
        for event in (open_event.then, mode_event.then, self.job.changed):
            event(self.show, shown, self._outputs, **QUICK)
        for event in (chosen.then, self._choice.checkpoint.input):
            event(self.show, self._target, self._outputs, **QUICK)
        self.previous.click(lambda *shown: self.show(*shown, step=-1), shown, self._outputs, **QUICK)
        self.next.click(lambda *shown: self.show(*shown, step=1), shown, self._outputs, **QUICK)
        self.job.start_by(self.start, [*shown, self._choice.where, *self._settings], self._outputs)
        self.job.stop.click(self.job.end, self._choice.run, self.job.outputs, **QUICK)
        pick_event = self.across.click(self.pick, None, [*self._choice.outputs, self.number], **QUICK)
        pick_event.then(self.show, shown, self._outputs, **QUICK)

    def show(self, run_id: str, checkpoint: str | None, number: int = 0, *, step: int = 0) -> Updates:
        """Return the evaluation's progress and result, with a page of its answered rows."""
        is_run, state = self._page.reader.exists(run_id), checkpoint_of(checkpoint)
        updates = self.job.follow(*([run_id] if is_run else []))
        result = self._evaluations.read(run_id, state) if is_run else None
        page = ListPage.at(number + step, len(result.answered) if result is not None else 0, view.ROWS_PER_PAGE)
        if result is not None:
            shown = view.render_evaluation(result)
        elif is_run:
            work = self._page.services.results.measuring.find(run_id)
            shown = "" if work is not None and work.is_under_way else view.NOT_MEASURED
        else:
            shown = view.NO_RESULT
        updates[self.job.start]["value"] = "Measure again" if result is not None else "Measure"
        return {
            **updates,
            self.number: page.number,
            self.result: shown,
            self.answers: visible_if(page.rows > 0),
            self.where: page.position("answered row", "the worst first"),
            self.rows: view.render_answered(result, page) if result is not None else "",
            self.across: view.render_across(self._evaluations.across(), f"{run_id}/{state or FINAL}" if is_run else ""),
            self.previous: gr.update(interactive=page.start > 0),
            self.next: gr.update(interactive=page.end < page.rows),
        }

    def start(self, run_id: str, checkpoint: str | None, number: int, where: str, *settings: Any) -> Updates:
        """Start an evaluation."""
        run = self._choice.run_of(run_id)
        pairs = zip(_SETTINGS, map(number_of, settings), strict=True)
        config = section_by_titles(EvaluationConfig, {name: value for name, value in pairs if value is not None})
        results = self._page.services.results
        results.measuring.require_none(run.id)
        self._page.services.unload_idle_chat()
        results.measure(run, checkpoint_of(checkpoint), config, chosen_place(where))
        return self.show(run_id, checkpoint, number)

    def pick(self, event: gr.EventData) -> Updates:
        """Choose a run and checkpoint of the table across runs."""
        run_id, _, checkpoint = picked_value(event).partition("/")
        if not self._page.reader.exists(run_id):
            return UNCHANGED
        updates = self._choice.choose(run_id)
        states = updates[self._choice.checkpoint]
        if checkpoint in [value for _, value in states["choices"]]:
            updates[self._choice.checkpoint] = {**states, "value": checkpoint}
        return {self._choice.run: run_id, **updates, self.number: 0}

"""Measure: base against tuned on the rows that a run held out, in the background, and across runs."""

from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.config.evaluation import EvaluationConfig
from engine.config.load import section_from_mapping
from engine.errors import EngineError, RunError
from ui.backend.evaluations import MeasuredRuns
from ui.errors import shown_as_message, shown_in_place
from ui.fields import component_of_field, number_of
from ui.page import Page
from ui.pick import pick_list, picked
from ui.tabs.chat.choice import A_FOLDER, A_MODEL, FINAL, ChatChoice
from ui.views.evaluation import (
    NO_RESULT,
    NOT_MEASURED,
    page_words,
    pages_of,
    render_across,
    render_answered,
    render_evaluation,
)
from ui.views.work import render_work, stamp_of

_LEAD = (
    '<p class="lead">Loss and perplexity on the rows that the run held out, then answers to some of them beside the '
    "reference. A model that is loaded for talking is unloaded first, so that there is room.</p>"
)
_REFRESH_SECONDS = 1.0
_STOPPED = "Stopped; nothing of it was kept."


class EvaluatePart:
    """Lays out the measuring; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice) -> None:
        self._page = page
        self._choice = choice
        self._measured = MeasuredRuns(page.services.runs, page.reader)
        fields = EvaluationConfig.model_fields
        gr.HTML(_LEAD)
        with gr.Row(equal_height=True, elem_id="measure-settings"):
            rows = component_of_field(fields["max_rows"], min_width=180, elem_id="measure-rows")
            answered = component_of_field(fields["answered_rows"], min_width=180, elem_id="measure-answered")
            longest = component_of_field(fields["max_new_tokens"], min_width=180, elem_id="measure-tokens")
        self._settings = [rows, answered, longest]
        with gr.Row(elem_id="measure-buttons"):
            self.start = gr.Button("Measure", variant="primary", scale=0, min_width=170, elem_id="measure-start")
            self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="measure-stop")
        self.standing = gr.HTML(elem_id="measure-standing")
        self.result = gr.HTML(NOT_MEASURED, elem_id="measure-result")
        with gr.Column(visible=False, elem_id="measure-answers") as self.answers:
            with gr.Row(elem_id="measure-pages"):
                self.previous = gr.Button("← Worse", size="sm", scale=0, min_width=90, elem_id="measure-previous")
                self.next = gr.Button("Better →", size="sm", scale=0, min_width=90, elem_id="measure-next")
                self.where = gr.HTML(elem_id="measure-where")
            self.rows = gr.HTML(elem_id="measure-answered-rows")
        self.across = pick_list(elem_id="measure-across")
        self._page_number = gr.State(0)
        self._stamp = gr.State("")
        self.timer = gr.Timer(_REFRESH_SECONDS, active=False)

    @property
    def _looked(self) -> list[Any]:
        return [
            self._stamp, self._page_number, self.standing, self.start, self.stop, self.result, self.answers, self.where,
            self.rows, self.across, self.previous, self.next,
        ]  # fmt: skip

    def rest_after(self, event: Dependency) -> None:
        """Nobody looks any more."""
        event.then(
            lambda: gr.update(active=False), None, self.timer, show_progress="hidden", queue=False,
            api_visibility="private",
        )  # fmt: skip

    def wire(self, opened: Dependency, switched: Dependency, chosen: Dependency, mode: gr.Radio) -> None:
        """Connect the events: the tab was opened, the mode changed, another run was chosen."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        target = [self._choice.run, self._choice.checkpoint]
        looking = [*target, self._page_number, self._stamp]
        for event in (opened, switched):
            awake = event.then(
                lambda shown: (gr.update(active=shown == "Measure"), ""), mode, [self.timer, self._stamp], **quick
            )
            awake.then(self.look, looking, self._looked, **quick)
        for event in (chosen, self._choice.checkpoint.input(lambda: "", None, self._stamp, **quick)):
            event.then(lambda: (0, ""), None, [self._page_number, self._stamp], **quick).then(
                self.look, looking, self._looked, **quick
            )
        self.timer.tick(self.look, looking, self._looked, trigger_mode="once", **quick)
        started = self.start.click(
            shown_in_place(self._start), [*target, *self._settings], self.standing, trigger_mode="once",
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        started.success(self.look, looking, self._looked, **quick)
        self.stop.click(shown_as_message(self._stop), self._choice.run, None, **quick)
        for button, step in ((self.previous, -1), (self.next, 1)):
            turned = button.click(
                lambda number, step=step: (max(0, number + step), ""),
                self._page_number,
                [self._page_number, self._stamp],
                **quick,
            )
            turned.then(self.look, looking, self._looked, **quick)
        picked_run = self.across.click(
            self._pick, None, [self._choice.run, *self._choice.depending, self._page_number, self._stamp], **quick
        )
        picked_run.then(self.look, looking, self._looked, **quick)

    def look(self, run_id: str, checkpoint: str | None, number: int, last: str) -> tuple[Any, ...]:
        """How measuring stands, and what it found; nothing is sent where nothing has changed."""
        if run_id in (A_MODEL, A_FOLDER) or not self._page.reader.exists(run_id):
            return self._without_run(last)
        state = checkpoint if checkpoint not in (None, FINAL) else None
        work = self._page.services.results.measuring.look(run_id)
        stamp = f"{run_id}/{state}:{number}:{stamp_of(work)}:{self._measured.stamp(run_id, state)}"
        if stamp == last:
            return (gr.skip(),) * len(self._looked)
        result = self._measured.read(run_id, state)
        working = work is not None and work.is_under_way
        pages = pages_of(result) if result is not None else 0
        number = min(number, max(0, pages - 1))
        found = NOT_MEASURED if not working else ""
        return (
            stamp,
            number,
            render_work(work, _STOPPED),
            gr.update(value="Measure again" if result is not None else "Measure", interactive=not working),
            gr.update(visible=working, interactive=not (work is not None and work.stopping)),
            render_evaluation(result) if result is not None else found,
            gr.update(visible=pages > 0),
            page_words(result, number) if result is not None and pages else "",
            render_answered(result, number) if result is not None else "",
            render_across(self._measured.across(), f"{run_id}/{state or FINAL}"),
            gr.update(interactive=number > 0),
            gr.update(interactive=number < pages - 1),
        )

    def _without_run(self, last: str) -> tuple[Any, ...]:
        if last == "no run":
            return (gr.skip(),) * len(self._looked)
        across = render_across(self._measured.across(), "")
        off, gone = gr.update(interactive=False), gr.update(visible=False)
        return "no run", 0, "", off, gone, NO_RESULT, gone, "", "", across, off, off

    def _start(self, run_id: str, checkpoint: str | None, *settings: Any) -> str:
        run = self._choice.run_of(run_id)
        named = zip(("max_rows", "answered_rows", "max_new_tokens"), map(number_of, settings), strict=True)
        config = section_from_mapping(EvaluationConfig, {name: value for name, value in named if value is not None})
        results, chat = self._page.services.results, self._page.services.chat
        present = results.measuring.look(run.id)
        if present is not None and present.is_under_way:
            raise RunError("This run is being measured already.", "Wait for its end, or stop it.")
        if chat.state.phase == "ready":
            chat.unload()
        work = results.measure(run, None if checkpoint in (None, FINAL) else checkpoint, config)
        return render_work(work, _STOPPED)

    def _stop(self, run_id: str) -> None:
        self._page.services.results.measuring.stop(self._choice.run_of(run_id).id)

    def _pick(self, event: gr.EventData) -> tuple[Any, ...]:
        run_id, _, checkpoint = picked(event).partition("/")
        if not self._page.reader.exists(run_id):
            return (gr.skip(),) * (3 + len(self._choice.depending))
        try:
            states, *others = self._choice.choose(run_id)
        except EngineError:
            return (gr.skip(),) * (3 + len(self._choice.depending))
        offered = [value for _, value in states["choices"]]
        if checkpoint in offered:
            states = {**states, "value": checkpoint}
        return run_id, states, *others, 0, ""

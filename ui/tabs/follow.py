"""The chosen run: status, curves, warnings, log, and the actions on it.

Stateless: every request reads the new part from disk, and any browser shows the same.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components.base import Component
from gradio.events import Dependency
from pydantic import BaseModel, Field, ValidationError

from loratory.engine.accounts.audit import AuditKind
from loratory.engine.config.derived_defaults import given_settings
from loratory.engine.config.objectives import objective_of
from loratory.engine.errors import EngineError
from loratory.engine.runs.control import change_notes, read_notes, request_cancel, request_start_anyway, request_stop
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import LIVE_STATES, Run
from loratory.ui.backend.background import Cache, stamp
from loratory.ui.backend.run_reader import RunSnapshot, log_tail
from loratory.ui.components import (
    HIDDEN,
    LATEST,
    ONCE,
    QUICK,
    SLOW,
    UNCHANGED,
    Confirmation,
    Updates,
    chart,
    live_html,
    picked_value,
    shared_script,
    shown_as_message,
    visible_if,
)
from loratory.ui.gradio_internals import Slider
from loratory.ui.page import Page, request_view
from loratory.ui.polls import RUN_SECONDS, poll, poll_answer
from loratory.ui.tabs.resume import ResumePart
from loratory.ui.views import run_view
from loratory.ui.views.answers import render_answers
from loratory.ui.views.html import error_box
from loratory.ui.views.loss_chart import ChartView, loss_figure
from loratory.ui.views.rewards import render_rollout
from loratory.ui.views.step_charts import reward_figure, small_figures

_MOST_SMOOTHING = 0.99
_LISTED = 200  # newest runs in the dropdown


class Question(BaseModel, frozen=True, extra="forbid"):
    """Which run a page follows and how it shows it, as an untrusted browser sends it."""

    run: str = Field(max_length=100)
    last_stamp: str = Field(max_length=1000)  # stamp of what the page showed when it began to poll
    smoothing: float = Field(ge=0, le=1)
    log_axis: bool
    log_open: bool


class FollowPart:
    """Lays out the run view: with a choice of the run, or with a prefix of ids below the table that is the choice."""

    def __init__(self, page: Page, choice: gr.Dropdown | None = None, prefix: str = "") -> None:
        self.page = page
        self._figures: Cache[str] = Cache()
        self._answers: Cache[str] = Cache()
        self.choice = choice
        self.heading = live_html(run_view.NO_RUN, elem_id=f"{prefix}run-heading")
        self.heading.js_on_load += shared_script("pick", "rename")
        self.trouble = gr.HTML(elem_id=f"{prefix}run-trouble")
        with gr.Row(elem_id=f"{prefix}run-buttons", elem_classes="run-buttons"):
            at_first: dict[str, Any] = {"visible": False, "scale": 0}
            self.stop = gr.Button("Stop and save", elem_id=f"{prefix}stop", min_width=150, **at_first)
            self.cancel = gr.Button("Cancel …", elem_id=f"{prefix}cancel", min_width=120, **at_first)
            self.resume = ResumePart(page.services, prefix)
            self.anyway = gr.Button("Start anyway", elem_id=f"{prefix}start-anyway", min_width=150, **at_first)
        self.resume.lay_out_settings()
        ids = f"{prefix}confirm-cancel", f"{prefix}really-cancel", f"{prefix}keep-running"
        self.confirm = Confirmation("Cancel run", "Keep running", ids)
        with gr.Column(visible=False) as self.body:
            waiting = "The curve begins with the first step."
            self.loss = chart(waiting, elem_id=f"{prefix}loss-chart", elem_classes="loss-chart")
            with gr.Row(elem_classes="chart-controls"):
                self.smoothing = Slider(
                    0, _MOST_SMOOTHING, ChartView().smoothing, step=0.01, label="Smoothing",
                    elem_id=f"{prefix}smoothing", elem_classes="smoothing", scale=2, min_width=200,
                )  # fmt: skip
                axis_id = f"{prefix}log-axis"
                self.log_axis = gr.Checkbox(False, label="Logarithmic axis", elem_id=axis_id, scale=1, container=False)
            self.answers = live_html(elem_id=f"{prefix}run-answers", more=("answers",))
            self.warnings = live_html(elem_id=f"{prefix}run-warnings")
            self.preferences = chart(elem_id=f"{prefix}preference-charts", elem_classes="small-charts")
            with gr.Accordion("Learning rate, speed and memory", open=True) as self.small_fold:
                self.small = chart(elem_id=f"{prefix}small-charts", elem_classes="small-charts")
            # In the side panel where there is one.
            self.made_of = live_html(elem_id=f"{prefix}run-made-of", render=choice is None)
            self.memory = live_html(elem_id=f"{prefix}run-memory", render=choice is None)
            with gr.Accordion("Timeline", open=False):
                self.timeline = live_html(elem_id=f"{prefix}run-timeline")
            with gr.Accordion("Worker log", open=False) as self.log_fold:
                self.log = live_html(elem_id=f"{prefix}run-log", more=("follow_end",))
        self._log_open = gr.State(False)
        # Kept in the browser: buttons act on the visible run, even if another one was chosen since.
        self.run_shown = gr.Textbox("", visible=False)
        self.live = poll(self.answer, RUN_SECONDS, elem_id=f"{prefix}run-live")
        # Changed by each step.
        self._poll_parts = [
            self.heading, self.loss, self.preferences, self.small, self.made_of, self.memory, self.answers,
            self.warnings, self.timeline, self.log,
        ]  # fmt: skip
        self._texts = [self.trouble, *self._poll_parts]
        self._buttons = [self.stop, self.cancel, self.anyway, *self.resume.outputs]
        self.outputs: list[Component] = [
            *self._texts, self.live, self.run_shown, self.body, *self._buttons, self.confirm.panel, self.small_fold,
            *([self.choice] if self.choice is not None else []),
        ]  # fmt: skip
        # What `show` needs besides the run.
        self.view_inputs = [self.smoothing, self.log_axis, self._log_open, self.run_shown]

    def lay_out_side(self) -> None:
        """Lay out the side panel of a run, which replaces the draft in the Follow view."""
        with gr.Column(elem_id="run-side"):
            self.made_of.render()
            self.memory.render()

    def wire(self) -> list[Dependency]:
        """Connect the events; return those that change the actions on the shown run."""
        page, viewing = self.page, [self.run_shown, *self.view_inputs]
        refresh_event = self.live.submit(self.refresh, viewing, self.outputs, **LATEST)
        controls = [self.smoothing.change, self.log_axis.change]
        gr.on(controls, self.redraw_loss, viewing[:-1], [self.loss, self.live], **LATEST)
        for event, is_open in ((self.log_fold.expand, True), (self.log_fold.collapse, False)):
            self._redraw_after(event(lambda is_open=is_open: is_open, None, self._log_open, **QUICK))
        if self.choice is not None:
            pick_event = self.choice.input(lambda run_id: run_id or "", self.choice, page.chosen_run, **QUICK)
            self._redraw_after(pick_event, page.chosen_run)
        advice_outputs = [page.settings_copy, page.copied_from, page.chosen_run, page.wants_result, page.tabs]
        advice_event = self.heading.click(shown_as_message(self._advise), self.run_shown, advice_outputs, **SLOW)
        page.fill_after(advice_event, page.settings_copy, "Settings copied")
        self.confirm.wire(self.cancel.click, self.cancel_question, self.run_shown)
        resume, once = self.resume, ONCE | QUICK
        resume_inputs = [self.run_shown, *resume.inputs]
        resume_event = resume.button.click(shown_as_message(resume.resume), resume_inputs, None, **once)
        edit_event = self.heading.click(shown_as_message(self._edit_picked), None, None, **QUICK)
        self.edit_event = edit_event.then(self.refresh, viewing, self.outputs, **QUICK)
        return [
            self.edit_event,
            refresh_event,
            self._request_by(self.anyway.click, request_start_anyway, "run started"),
            self._request_by(self.stop.click, request_stop, "run stopped"),
            self._redraw_after(resume_event),
            self._request_by(self.confirm.really.click, request_cancel, "run stopped"),
        ]

    def _advise(self, event: gr.EventData, run_id: str) -> Updates:
        # Other clicks on the heading copy no settings, nor those of an earlier copy again.
        return self.take_advice(run_id) if picked_value(event) == "advice" else {self.page.settings_copy: {}}

    def _edit_picked(self, event: gr.EventData) -> None:
        self.edit(picked_value(event))

    def edit(self, pick: str) -> None:
        """Change the notes of a run as a click asks: `star:ID` gives or removes its star, `name:ID:NAME` renames it.

        Raises:
            EngineError: If the name is too long, or cannot be saved.
        """
        field, run_id, name = [*pick.split(":", 2), "", ""][:3]
        if not self.page.reader.exists(run_id):
            return
        folder = self.page.services.runs.get(run_id).folder
        if field == "name":
            change_notes(folder, name=name)
        elif field == "star":
            change_notes(folder, star=not read_notes(folder).star)
        self.page.reader.invalidate()

    def _redraw_after(self, event: Dependency, run: Component | None = None) -> Dependency:
        """Redraw a run, by default the shown one, after an event that changed it."""
        return event.then(self.show, [run or self.run_shown, *self.view_inputs], self.outputs, **QUICK)

    def _request_by(self, event: Any, request: Callable[[Run], None], kind: AuditKind) -> Dependency:
        send = shown_as_message(lambda run_id: self.send(request, kind, run_id))
        return self._redraw_after(event(send, self.run_shown, None, **(ONCE | QUICK)))

    def send(self, request: Callable[[Run], None], kind: AuditKind, run_id: str) -> None:
        """Send a request to a run, and log it."""
        run = self.page.services.runs.get(run_id)
        request(run)
        self.page.services.log(kind, run.id)

    def take_advice(self, run_id: str) -> Updates:
        """Do what the verdict on a run advises: open a checkpoint in Chat, or copy the settings with its change."""
        page, verdict = self.page, run_view.verdict_of(self.page.reader.observe(run_id))
        if verdict is not None and verdict.step is not None:
            view = request_view("chat", f"step-{verdict.step}")
            chat = {page.wants_result: view, page.tabs: gr.Tabs(selected="chat")}
            return {page.chosen_run: run_id, page.settings_copy: {}, **chat}
        settings = self.configuration(run_id, verdict.settings if verdict is not None else {})
        return {page.settings_copy: settings, page.copied_from: run_id, page.tabs: gr.Tabs(selected="method")}

    def configuration(self, run_id: str, changes: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Return the run's saved settings for the form, without its name; `changes` replaces some, by their full names."""
        folder = self.page.services.runs.get(run_id).folder
        config = folder.read_config()
        # Settings are copied even if the model cannot be read; the Model tab shows why.
        with contextlib.suppress(EngineError):
            self.page.services.shapes.learn(config.model)
        mapping = given_settings(config, read_provenance(folder).open_settings)
        for name, value in {**changes, "run.name": ""}.items():
            section, _, setting = name.partition(".")
            mapping = {**mapping, section: {**mapping[section], setting: value}}
        return mapping

    def cancel_question(self, run_id: str) -> tuple[str, str]:
        """Return the run's title and the question before it is cancelled."""
        effect = "stops now. Saved checkpoints stay; progress after the last one is lost."
        return self.page.reader.observe(run_id).label, f"{effect} <b>Stop and save</b> loses nothing."

    def show_after(self, event: Dependency, view: gr.Radio) -> Dependency:
        """List the runs and draw the chosen one after an event that may have opened the view."""
        chosen = self.page.chosen_run
        list_event = event.then(self._list, [chosen, view], self.choice, **QUICK)

        def show_if_in_front(run_id: str, view: str, *how: Any) -> Updates:
            return self.show(run_id, *how) if view == "Follow" else UNCHANGED

        return list_event.then(show_if_in_front, [chosen, view, *self.view_inputs], self.outputs, **QUICK)

    def answer(self, question: str, last_stamp: str) -> str | None:
        """Return what is new since `last_stamp`, as `loratory.ui.polls.poll` sends it; None where nothing is new.

        If the buttons change, the answer makes the page send an event, `refresh`, which alone can change them.
        """
        try:
            query = Question.model_validate_json(question)
        except ValidationError:
            return None
        if not query.run:
            return None
        last_stamp = last_stamp or query.last_stamp
        try:
            snapshot = self.page.reader.observe(query.run)
        except EngineError:
            return poll_answer("gone", {}, submit=True) if last_stamp != "gone" else None
        new = _stamp_of(snapshot, query.log_open)
        if new == last_stamp:
            return None
        if not last_stamp.endswith(_actions_stamp(snapshot)):
            return poll_answer(new, {}, submit=True)
        view = _view_of(query.smoothing, query.log_axis)
        return self._answers.get((new, view), lambda: self._poll_answer(new, snapshot, view, query.log_open))

    def _poll_answer(self, new: str, snapshot: RunSnapshot, view: ChartView, log_open: bool) -> str:
        updates = self._draw(snapshot, view, log_open)
        parts = {part.elem_id: text for part in self._poll_parts if isinstance(text := updates.get(part), str)}
        return poll_answer(new, parts)

    def refresh(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, run_shown: str = "") -> Updates:
        """Redraw a run and the list of runs after a poll found more than new curves."""
        self.page.reader.invalidate()  # the list may be older than what the poll found
        choice_update = {self.choice: self._list(run_id, "Follow")} if run_id and self.choice is not None else {}
        return {**self._show(run_id, smoothing, log_axis, log_open, run_shown), **choice_update}

    def show(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, run_shown: str = "") -> Updates:
        """Return everything about a run; an open question stays open only if `run_shown` is the same run."""
        known_id = run_id if self.page.reader.exists(run_id) else ""
        return self._show(known_id, smoothing, log_axis, log_open, run_shown)

    def _show(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, run_shown: str) -> Updates:
        if not run_id:
            return self._without_run(run_view.NO_RUN)
        try:
            snapshot = self.page.reader.observe(run_id)
        except EngineError as error:
            return self._without_run(error_box(error))
        updates = self._draw(snapshot, _view_of(smoothing, log_axis), log_open)
        updates |= self.resume.draw(snapshot, run_id != run_shown)
        if run_id != run_shown or not updates[self.cancel]["visible"]:
            updates[self.confirm.panel] = HIDDEN
        if run_id != run_shown:  # else keep the user's choice
            config = snapshot.config  # its charts come with the first steps
            compares = config is not None and objective_of(config).learns_preferences
            updates[self.small_fold] = gr.update(open=not compares)
        return updates

    def _without_run(self, heading: str) -> Updates:
        parts = [self.body, *self._buttons, self.confirm.panel]
        texts = dict.fromkeys([*self._texts, self.live, self.run_shown], "")
        return {**dict.fromkeys(parts, HIDDEN), **texts, self.heading: heading}

    def redraw_loss(self, run_id: str, smoothing: float | None, log_axis: bool, log_open: bool) -> Updates:
        """Redraw the loss curve after a change of its controls; polls use them too."""
        view = _view_of(smoothing, log_axis)
        try:
            snapshot = self.page.reader.observe(run_id)
        except EngineError:
            return UNCHANGED
        return {self.loss: self._loss(snapshot, view), self.live: _question(snapshot, view, log_open)}

    def _list(self, run_id: str, view: str) -> Any:
        if view != "Follow":
            return UNCHANGED
        choices = run_view.run_choices(self.page.reader.summaries()[:_LISTED])
        is_known = any(value == run_id for _, value in choices)
        return gr.update(choices=choices, value=run_id if is_known else None, visible=bool(choices))

    def _draw(self, snapshot: RunSnapshot, view: ChartView, log_open: bool) -> Updates:
        run, history, state = snapshot.run, snapshot.history, snapshot.state.state
        is_ending = snapshot.stop_requested or snapshot.cancel_requested
        predicted_bytes = snapshot.provenance.predicted_memory.of_step
        left_out = run.folder.read_dataset_report()
        updates = {
            self.live: _question(snapshot, view, log_open),
            self.run_shown: run.id,
            self.body: gr.update(visible=True),
            self.heading: run_view.render_heading(snapshot, can_change=True) + self._verdict(snapshot),
            self.trouble: run_view.render_trouble(snapshot),
            self.loss: self._loss(snapshot, view),
            self.preferences: self._figure(snapshot, "preferences", lambda: _preferences(snapshot)),
            self.small: self._figure(snapshot, "small", lambda: small_figures(history, predicted_bytes, run.id)),
            self.made_of: run_view.render_run_settings(snapshot) if self.choice is not None else "",
            self.memory: run_view.render_memory(snapshot) + run_view.render_time(snapshot),
            self.answers: self._figure(snapshot, "answers", lambda: _answers(snapshot)),
            self.warnings: run_view.render_warnings(snapshot) + run_view.render_left_out(left_out),
            self.timeline: run_view.render_timeline(snapshot),
            self.stop: gr.update(
                visible=state in ("queued", "submitted", "starting", "running") and not is_ending,
                value="Remove from queue" if state == "queued" else "Stop and save",
            ),
            self.cancel: visible_if(state in LIVE_STATES and not snapshot.cancel_requested),
            self.anyway: visible_if(snapshot.waits_for_memory and not is_ending),
        }
        if log_open:
            updates[self.log] = run_view.render_log(log_tail(run.folder.log))
        return updates

    def _verdict(self, snapshot: RunSnapshot) -> str:
        """Judge a run that trains once for all pages, and only with every fiftieth step more: all its losses are read."""
        steps, evals = len(snapshot.history.steps), len(snapshot.history.evals)
        if not snapshot.is_live or not steps:
            return run_view.render_verdict(snapshot)
        key = (snapshot.run.id, "verdict", math.floor(50 * math.log(steps)), evals)
        return self._figures.get(key, lambda: run_view.render_verdict(snapshot))

    def _loss(self, snapshot: RunSnapshot, view: ChartView) -> str:
        cost = self.page.reader.cost(snapshot)
        return self._figure(snapshot, (view, cost), lambda: loss_figure(snapshot.history, view, snapshot.run.id, cost))

    def _figure(self, snapshot: RunSnapshot, kind: object, draw: Callable[[], str]) -> str:
        """Draw a figure once for all pages."""
        return self._figures.get((snapshot.run.id, snapshot.history.next_offset, kind), draw)


def _preferences(snapshot: RunSnapshot) -> str:
    config = snapshot.config
    return reward_figure(snapshot.history, config.training, snapshot.run.id) if config is not None else ""


def _answers(snapshot: RunSnapshot) -> str:
    rewards = snapshot.config.training.rewards if snapshot.config is not None else ()
    return render_answers(snapshot) + render_rollout(snapshot.history, rewards)


def _view_of(smoothing: float | None, log_axis: bool) -> ChartView:
    """Return the view of the curve; while typing, the slider's box may be empty or hold any number."""
    return ChartView(min(max(smoothing or 0.0, 0.0), _MOST_SMOOTHING), log_axis)


def _question(snapshot: RunSnapshot, view: ChartView, log_open: bool) -> str:
    """Return the poll's question; empty for a run that has ended."""
    if not snapshot.is_live:
        return ""
    last_stamp, controls = _stamp_of(snapshot, log_open), view._asdict()
    return Question(run=snapshot.run.id, last_stamp=last_stamp, log_open=log_open, **controls).model_dump_json()


def _stamp_of(snapshot: RunSnapshot, log_open: bool) -> str:
    return stamp(snapshot.stamp, snapshot.log_bytes if log_open else "-", "") + _actions_stamp(snapshot)


def _actions_stamp(snapshot: RunSnapshot) -> str:
    """Return the end of a stamp: the state that buttons and error box depend on."""
    state = snapshot.state
    requests = (snapshot.stop_requested, snapshot.cancel_requested, snapshot.resume_requested)
    possible = (snapshot.waits_for_memory, state.resumable_step)
    has_failed = snapshot.history.failed is not None
    return stamp(snapshot.run.id, state.state, state.changed, *requests, *possible, has_failed)

"""The run that is being looked at: status, curves, warnings, log, and what can be done with it."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components.base import Component
from gradio.events import Dependency

from engine.errors import EngineError
from engine.runs.control import request_cancel, request_resume, request_start_anyway, request_stop
from engine.runs.peaks import step_prediction
from engine.runs.run import LIVE_STATES, Run
from ui.backend.rendered import Rendered
from ui.backend.run_reader import ObservedRun, log_tail
from ui.chart import chart
from ui.components import FieldSlider
from ui.errors import shown_as_message
from ui.live import asking, news, place
from ui.page import Page
from ui.tabs.runs.confirmation import Confirmation, render_question
from ui.tabs.train.drawn import CURVES, NOTHING, Drawn, Question, gone
from ui.views.loss_chart import ChartView, loss_figure, small_figures
from ui.views.run_choice import run_choices
from ui.views.run_view import (
    NO_RUN,
    render_heading,
    render_left_out,
    render_log,
    render_memory,
    render_timeline,
    render_trouble,
    render_warnings,
)

_ASK_SECONDS = 2.0
_MOST_SMOOTHING = 0.99
_LISTED = 200  # newest runs that are offered
_CANCEL_WORDS = (
    "would end at once. Checkpoints that were saved before stay; what came after the last one is lost. "
    "<b>Stop and save</b> loses nothing."
)


class FollowPart:
    """Lays out the run view; stateless: every look reads what is new on the disk, so any browser shows the same.

    Args:
        page: The page.
        choice: Where the run is chosen; None where a table does that.
        prefix: Begins the ids of its elements, where the view stands on the page a second time.
    """

    def __init__(self, page: Page, choice: gr.Dropdown | None = None, prefix: str = "") -> None:
        self._page = page
        self._figures, self._answers = Rendered(), Rendered()
        self.choice = choice
        self.heading = place(NO_RUN, elem_id=f"{prefix}run-heading")
        self.trouble = gr.HTML(elem_id=f"{prefix}run-trouble")
        with gr.Row(elem_id=f"{prefix}run-buttons", elem_classes="run-buttons"):
            self.stop = gr.Button("Stop and save", visible=False, elem_id=f"{prefix}stop", scale=0, min_width=150)
            self.cancel = gr.Button("Cancel …", visible=False, elem_id=f"{prefix}cancel", scale=0, min_width=120)
            self.resume = gr.Button("Resume", visible=False, elem_id=f"{prefix}resume", scale=0, min_width=150)
            self.anyway = gr.Button(
                "Start although memory is short",
                visible=False,
                elem_id=f"{prefix}start-anyway",
                scale=0,
                min_width=220,
            )
            self.chat = gr.Button(
                "Open in Chat", variant="primary", visible=False, elem_id=f"{prefix}open-chat", scale=0, min_width=160
            )
        self.confirm = Confirmation(
            "Cancel the run",
            "Keep it running",
            elem_id=f"{prefix}confirm-cancel",
            yes_id=f"{prefix}really-cancel",
            no_id=f"{prefix}keep-running",
        )
        with gr.Column(visible=False) as self.body:
            self.loss = chart(
                "The curve begins with the first step.", elem_id=f"{prefix}loss-chart", elem_classes="loss-chart"
            )
            with gr.Row(elem_classes="chart-controls"):
                self.smoothing = FieldSlider(
                    0,
                    _MOST_SMOOTHING,
                    ChartView().smoothing,
                    step=0.01,
                    label="Smoothing",
                    elem_id=f"{prefix}smoothing",
                    elem_classes="smoothing",
                    scale=2,
                    min_width=200,
                )
                self.log_axis = gr.Checkbox(
                    False, label="Logarithmic axis", elem_id=f"{prefix}log-axis", scale=1, container=False
                )
            self.warnings = place(elem_id=f"{prefix}run-warnings")
            self.small = chart(elem_id=f"{prefix}small-charts", elem_classes="small-charts")
            self.memory = place(elem_id=f"{prefix}run-memory")
            with gr.Accordion("What happened, step by step", open=False):
                self.timeline = place(elem_id=f"{prefix}run-timeline")
            with gr.Accordion("Log of the worker", open=False) as self.log_fold:
                self.log = place(elem_id=f"{prefix}run-log", follows_end=True)
        self._log_open = gr.State(False)
        # It stands in the browser beside what is drawn: buttons act on the run that a person sees, whatever was chosen since.
        self.shown = gr.Textbox("", visible=False)
        self.live = asking(self.answer, _ASK_SECONDS, elem_id=f"{prefix}run-live")

    @property
    def outputs(self) -> list[Component]:
        """Where a `Drawn` goes."""
        outputs: list[Component] = [
            self.live, self.heading, self.trouble, self.body, self.loss, self.small, self.memory, self.warnings,
            self.timeline, self.log, self.stop, self.cancel, self.resume, self.anyway, self.chat, self.shown,
            self.confirm.panel,
        ]  # fmt: skip
        return outputs if self.choice is None else [*outputs, self.choice]

    def _sent(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """What a handler gives, without the choice where there is none."""

        @functools.wraps(handler)
        def send(*values: Any) -> Any:
            drawn = handler(*values)
            return drawn[: len(self.outputs)] if isinstance(drawn, Drawn) else drawn

        return send

    @property
    def look_inputs(self) -> list[Component]:
        """How a run is looked at: what `look` wants to know beside the run."""
        return [self.smoothing, self.log_axis, self._log_open, self.shown]

    def wire(self) -> list[Dependency]:
        """Connect the events; after those that come back, other things can be done with the run that is shown."""
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        looking = [self.shown, *self.look_inputs]
        refreshed = self.live.submit(
            self._sent(self.refresh), looking, self.outputs, trigger_mode="always_last", **quick
        )
        gr.on(
            [self.smoothing.change, self.log_axis.change],
            self.redraw_loss,
            looking[:-1],
            [self.loss, self.live],
            trigger_mode="always_last",
            **quick,
        )
        for event, is_open in ((self.log_fold.expand, True), (self.log_fold.collapse, False)):
            opened = event(lambda is_open=is_open: is_open, None, self._log_open, **quick)
            self._look_again_after(opened)
        if self.choice is not None:
            picked = self.choice.input(lambda run_id: run_id or "", self.choice, page.chosen_run, **quick)
            self.look_after(picked)
        page.open_tab(self.chat.click(lambda run_id: run_id, self.shown, page.chosen_run, **quick), "chat")
        self.confirm.wire(self.cancel.click, self.ask_cancel, self.shown)
        return [
            refreshed,
            self._ask(self.anyway.click, request_start_anyway),
            self._ask(self.stop.click, request_stop),
            self._ask(self.resume.click, lambda run: request_resume(page.services.home, run)),
            self._ask(self.confirm.really.click, request_cancel),
        ]

    def look_after(self, event: Dependency) -> Dependency:
        """After an event that chose a run: show everything about it."""
        return self._look_again_after(event, self._page.chosen_run)

    def _look_again_after(self, event: Dependency, run: Component | None = None) -> Dependency:
        """After an event that changed something about a run, that which is shown unless another is named."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        return event.then(self._sent(self.look), [run or self.shown, *self.look_inputs], self.outputs, **quick)

    def ask_cancel(self, run_id: str) -> str:
        """The question before a run is cancelled."""
        return render_question(self._page.reader.observe(run_id).title, _CANCEL_WORDS)

    def show_after(self, event: Dependency, view: gr.Radio) -> Dependency:
        """After an event that may have brought the run view to the front: list the runs, look at the chosen one."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        listed = event.then(self._list, [self._page.chosen_run, view], self.choice, **quick)
        return listed.then(
            self._sent(self.look_if_shown),
            [self._page.chosen_run, view, *self.look_inputs],
            self.outputs,
            **quick,
        )

    def answer(self, question: str, stamp: str) -> str | None:
        """What a page is to show since `stamp`, as `ui.live` sends it; None where nothing is new.

        Where other buttons are due the page asks for all of it by an event, `refresh`: only that can change them.
        """
        asked = Question.from_text(question)
        if asked is None or not asked.run:
            return None
        seen = stamp or asked.seen
        try:
            observed = self._page.reader.observe(asked.run)
        except EngineError:
            return news("gone", {}, submit=True) if seen != "gone" else None
        new = _stamp_of(observed, asked.log_open)
        if new == seen:
            return None
        if not seen.endswith(_offers_of(observed)):
            return news(new, {}, submit=True)
        return self._answers.get((new, asked.view), lambda: news(new, self._places(observed, asked)))

    def _places(self, observed: ObservedRun, asked: Question) -> dict[str, str]:
        drawn = self._draw(observed, asked.view, asked.log_open)
        new = ((getattr(self, name).elem_id, getattr(drawn, name)) for name in CURVES)
        return {place: value for place, value in new if isinstance(value, str)}

    def refresh(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, shown: str = "") -> Drawn:
        """All of it, after a page found that more than its curves has changed; the list of runs has it as well."""
        if not run_id:
            return NOTHING
        drawn = self._look(run_id, smoothing, log_axis, log_open, shown)
        return drawn._replace(choice=self._list(run_id, "Follow"))

    def look(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, shown: str = "") -> Drawn:
        """Everything about a run; a question that was asked stays open only where `shown` was the same run."""
        if not self._page.reader.exists(run_id):
            return NOTHING
        return self._look(run_id, smoothing, log_axis, log_open, shown)

    def _look(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, shown: str) -> Drawn:
        try:
            observed = self._page.reader.observe(run_id)
        except EngineError as error:
            return gone(error)
        drawn = self._draw(observed, _view_of(smoothing, log_axis), log_open)
        can_cancel = drawn.cancel["visible"]
        return drawn._replace(confirm=gr.skip() if run_id == shown and can_cancel else gr.update(visible=False))

    def look_if_shown(
        self, run_id: str, view: str, smoothing: float, log_axis: bool, log_open: bool, shown: str = ""
    ) -> Any:
        """Like `look`, where the view is in front."""
        return self.look(run_id, smoothing, log_axis, log_open, shown) if view == "Follow" else gr.skip()

    def redraw_loss(self, run_id: str, smoothing: float | None, log_axis: bool, log_open: bool) -> Any:
        """The loss curve alone, after its controls were moved; what follows is drawn the same way."""
        view = _view_of(smoothing, log_axis)
        try:
            observed = self._page.reader.observe(run_id)
        except EngineError:
            return gr.skip(), gr.skip()
        return self._loss(observed, view), _question(observed, view, log_open)

    def _list(self, run_id: str, view: str) -> Any:
        if view != "Follow":
            return gr.skip()
        choices = run_choices(self._page.reader.summaries()[:_LISTED])
        known = any(value == run_id for _, value in choices)
        return gr.update(choices=choices, value=run_id if known else None, visible=bool(choices))

    def _draw(self, observed: ObservedRun, view: ChartView, log_open: bool) -> Drawn:
        state, resumable = observed.state.state, observed.state.resumable_step
        asked = observed.stop_requested or observed.cancel_requested
        return Drawn(
            live=_question(observed, view, log_open),
            heading=render_heading(observed),
            trouble=render_trouble(observed),
            body=gr.update(visible=True),
            loss=self._loss(observed, view),
            small=self._small(observed),
            memory=render_memory(observed),
            warnings=render_warnings(observed) + render_left_out(observed.run.folder.read_dataset_report()),
            timeline=render_timeline(observed),
            log=render_log(log_tail(observed.run.folder.log)) if log_open else gr.skip(),
            stop=gr.update(
                visible=state in ("queued", "submitted", "starting", "running") and not asked,
                value="Take out of the queue" if state == "queued" else "Stop and save",
            ),
            cancel=gr.update(visible=state in LIVE_STATES and not observed.cancel_requested),
            resume=gr.update(
                visible=state in ("stopped", "failed", "interrupted") and not observed.resume_requested,
                value=f"Resume from step {resumable:,}" if resumable else "Begin anew",
            ),
            anyway=gr.update(visible=observed.waits_for_memory and not asked),
            chat=gr.update(visible=observed.can_be_talked_to),
            shown=observed.run.id,
            confirm=gr.skip(),
            choice=gr.skip(),
        )

    def _loss(self, observed: ObservedRun, view: ChartView) -> str:
        key = (observed.run.id, observed.history.next_offset, view)
        if not len(observed.history.steps) and not observed.history.evals:
            return ""
        return self._figures.get(key, lambda: loss_figure(observed.history, view, observed.run.id))

    def _small(self, observed: ObservedRun) -> str:
        if not len(observed.history.steps):
            return ""
        provenance = observed.provenance
        predicted = step_prediction(provenance.predicted_memory, observed.history.memory, provenance.predicted_bytes)
        key = (observed.run.id, observed.history.next_offset, "small")
        return self._figures.get(key, lambda: small_figures(observed.history, predicted, observed.run.id))

    def _ask(self, event: Callable[..., Dependency], request: Callable[[Run], None]) -> Dependency:
        def ask(run_id: str) -> None:
            request(self._page.services.runs.get(run_id))

        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        asked = event(shown_as_message(ask), self.shown, None, trigger_mode="once", **quick)
        return self._look_again_after(asked)


def _view_of(smoothing: float | None, log_axis: bool) -> ChartView:
    """How the curve is drawn; the box of the slider may be empty, or hold any number, while somebody types."""
    return ChartView(min(max(smoothing or 0.0, 0.0), _MOST_SMOOTHING), log_axis)


def _question(observed: ObservedRun, view: ChartView, log_open: bool) -> str:
    """What the page goes on to ask; nothing about a run that has ended."""
    if not observed.is_live:
        return ""
    return Question(
        run=observed.run.id,
        seen=_stamp_of(observed, log_open),
        smoothing=view.smoothing,
        log_axis=view.log_axis,
        log_open=log_open,
    ).model_dump_json()


def _stamp_of(observed: ObservedRun, log_open: bool) -> str:
    return f"{observed.stamp}:{observed.log_bytes if log_open else '-'}{_offers_of(observed)}"


def _offers_of(observed: ObservedRun) -> str:
    """The end of a stamp: all that the buttons and the trouble box depend on."""
    state = observed.state
    asked = f"{observed.stop_requested:d}{observed.cancel_requested:d}{observed.resume_requested:d}"
    said = f"{state.changed}{state.resumable_step}{observed.history.failed is not None:d}"
    return f"|{observed.run.id}:{state.state}:{asked}{observed.waits_for_memory:d}{observed.can_be_talked_to:d}:{said}"

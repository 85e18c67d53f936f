"""Train: settings of the training, what they come to, the start; then the run, live."""

from html import escape
from typing import Any

import gradio as gr

from engine.config.presets import find_preset, list_presets
from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.hardware.lease import lease_name
from ui.backend.dataset_checks import CheckQuestion
from ui.components import Dropdown, Radio
from ui.draft import Draft
from ui.errors import shown_as_message, trouble
from ui.page import Page
from ui.pick import pick_list, picked
from ui.tabs.train.follow import FollowPart
from ui.tabs.train.start import StartPart
from ui.views.presets import render_presets
from ui.views.run_plan import KnownSpeed, render_plan

SET_UP, FOLLOW = "Set up", "Follow"
_LEAD = (
    '<h2>How the training goes</h2><p class="lead">The defaults serve most datasets. A preset fills the whole form: '
    "model, data, method and these settings.</p>"
)
_IN_SIGHT = (
    "run.name", "training.num_train_epochs", "training.max_steps", "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps", "training.learning_rate", "training.max_length", "training.packing",
    "training.gradient_checkpointing",
)  # fmt: skip
# What decides how many tokens there are; the rest of the form does not.
_COUNTED_BY = ("training.max_length", "training.seed")
_LOOK_SECONDS = 0.5  # between two looks at a count under way


class TrainTab:
    """Lays out the Train tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        with gr.Row(equal_height=True, elem_id="train-top"):
            self.view = Radio(
                [SET_UP, FOLLOW],
                value=SET_UP,
                label="Set up a run, or follow one",
                show_label=False,
                container=False,
                elem_id="train-view",
                scale=0,
                min_width=190,
            )
            choice = Dropdown(
                [], label="Run", show_label=False, container=False, visible=False, elem_id="follow-run", min_width=260
            )
        self._entered = gr.State(False)
        with gr.Column(elem_id="train-setup") as self.setup:
            gr.HTML(_LEAD)
            self.presets = pick_list(_presets(), elem_id="presets")
            self._settings()
            self.plan = gr.HTML(elem_id="plan")
            self.start = StartPart(page)
        with gr.Column(visible=False, elem_id="train-follow") as self.follow_column:
            self.follow = FollowPart(page, choice)
        self._change = gr.State({})
        self._counting = gr.Timer(_LOOK_SECONDS, active=False)
        page.on_draft_later(self.plan, self._plan)

    def _settings(self) -> None:
        form = self._page.form
        form.setting("run.name", placeholder="made from model, method and data", elem_id="run-name")
        with gr.Row():
            form.setting("training.num_train_epochs", elem_id="epochs", min_width=240)
            form.setting("training.max_steps", elem_id="max-steps", min_width=240)
        with gr.Row():
            form.setting("training.learning_rate", elem_id="learning-rate", min_width=240)
            form.setting("training.max_length", elem_id="max-length", min_width=240)
        with gr.Row():
            form.setting("training.per_device_train_batch_size", elem_id="batch", maximum=64, min_width=240)
            form.setting("training.gradient_accumulation_steps", elem_id="accumulate", maximum=64, min_width=240)
        with gr.Row():
            form.setting("training.packing", elem_id="packing", min_width=240)
            form.setting("training.gradient_checkpointing", elem_id="checkpointing", min_width=240)
        with gr.Accordion("All other settings", open=False, elem_id="more-training"):
            rest = [
                f"{section}.{name}"
                for section in ("training", "run")
                for name in _fields(section)
                if f"{section}.{name}" not in _IN_SIGHT
            ]
            for first in range(0, len(rest), 2):
                with gr.Row():
                    for name in rest[first : first + 2]:
                        form.setting(name, min_width=240)

    def wire(self) -> None:
        """Connect the events."""
        page, form = self._page, self._page.form
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        preset = self.presets.click(shown_as_message(self._use_preset), None, self._change, **quick)
        alone = preset.success(lambda: "", None, page.copied_from, queue=False, **quick)
        filled = page.fill_after(alone, self._change)
        self._count_after(filled)
        for name in _COUNTED_BY:
            box: Any = form[name]
            # Counting reads every row: it waits until the box is left, or Enter is pressed.
            self._count_after(gr.on([box.submit, box.blur], lambda: None, None, None, queue=False, **quick))
        self._counting.tick(
            self.count,
            form.components,
            [self.plan, self._counting, self._page.data_trouble],
            trigger_mode="once",
            queue=False,
            **quick,
        )
        shown = [self.setup, self.follow_column, self.follow.choice]
        self.view.change(_columns_of, self.view, shown, queue=False, **quick)
        self.follow.wire()
        arrived = self._tab.select(
            self._arrive,
            [page.chosen_run, self._entered, page.wants_run],
            [self.view, self._entered, page.chosen_run, page.wants_run],
            queue=False,
            **quick,
        )
        self.follow.show_after(arrived, self.view)
        self._count_after(arrived)
        self.follow.show_after(self.view.input(lambda: None, None, None, queue=False, **quick), self.view)
        started = self.start.wire()
        shown_now = started.then(
            _view_after, self.start.goes_to, [self.view, page.tabs, self.start.goes_to], queue=False, **quick
        )
        self.follow.show_after(shown_now, self.view)

    def _count_after(self, event: Any) -> None:
        event.then(
            self.count,
            self._page.form.components,
            [self.plan, self._counting, self._page.data_trouble],
            trigger_mode="always_last",
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    def _arrive(self, chosen: str, entered: bool, wanted: bool = False) -> tuple[Any, Any, Any, bool]:
        """A run that somebody wanted to see here comes first; on the first visit, one that is under way."""
        reader = self._page.reader
        known = chosen if reader.exists(chosen) else ""
        under_way = reader.newest_under_way()
        if known and (wanted or reader.observe(known).is_live):
            return (FOLLOW if wanted or not entered else gr.skip()), True, known, False
        if under_way is not None and not known:
            return (gr.skip() if entered else FOLLOW), True, under_way, False
        return gr.skip(), True, (gr.skip() if known == chosen else known), False

    def _use_preset(self, event: gr.EventData) -> dict[str, Any]:
        preset = find_preset(picked(event))
        mapping = preset.mapping()
        model = preset.load().model
        try:
            self._page.services.shapes.learn(model)
        except EngineError as error:
            # The form is filled all the same; Model says what is wrong with the model.
            gr.Warning(escape(str(error)), title="The preset's model cannot be read now", duration=12)
        return mapping

    def _plan(self, draft: Draft) -> str:
        config = draft.config
        check = self._page.services.checks.find(_question(config)) if config is not None else None
        report = check.report if check is not None else None
        return render_plan(config or draft.assumed, report, self._known_speed(draft))

    def count(self, request: gr.Request, *values: Any) -> tuple[Any, Any, Any]:
        """Have the tokens counted where they are not yet, behind the page; the clock looks how far it has come."""
        draft, checks = self._page.draft(values), self._page.services.checks
        if draft.config is None:
            return gr.skip(), gr.update(active=False), gr.skip()
        question = _question(draft.config)
        trouble = checks.trouble(question)
        if trouble is not None:  # the reason beside the start button and the panel say it
            return self._plan(draft), gr.update(active=False), trouble.what
        check = checks.ask(question, request.session_hash or "")
        if check.waits or check.was_stopped:
            untold = '<p class="small">Its tokens are counted once all rows were read: Data has the button for it.</p>'
            return f"{self._plan(draft)}{untold}", gr.update(active=False), gr.skip()
        if check.is_done:
            return self._plan(draft), gr.update(active=False), check.error.what if check.error is not None else ""
        rows = check.progress.rows if check.progress is not None else 0
        counted = f'<p class="small" role="status">Counting tokens: {rows:,} rows so far …</p>'
        return f"{self._plan(draft)}{counted}", gr.update(active=True), gr.skip()

    def _known_speed(self, draft: Draft) -> KnownSpeed | None:
        """Throughput of the newest run that was like this draft; a guess from other hardware would be none."""
        config = draft.config or draft.assumed
        if config is None or draft.device is None:
            return None
        wanted = (config.model.id, config.method_name)
        device = lease_name(draft.device)
        for row in self._page.reader.summaries():
            if (row.model, row.method) == wanted and row.tokens_per_second and row.device == device:
                return KnownSpeed(row.tokens_per_second, row.name)
        return None


def _presets() -> str:
    try:
        return render_presets(list_presets())
    except EngineError as error:
        return trouble(error)


def _view_after(goes_to: str) -> tuple[Any, Any, Any]:
    """Follow the run that was just filed, or list the runs of a sweep; a clock that found nothing changes nothing."""
    if not goes_to:
        return gr.skip(), gr.skip(), gr.skip()
    return FOLLOW, gr.Tabs(selected="runs") if goes_to == "runs" else gr.skip(), ""


def _columns_of(view: str) -> tuple[Any, Any, Any]:
    follows = gr.update(visible=view == FOLLOW)
    return gr.update(visible=view == SET_UP), follows, follows


def _fields(section: str) -> list[str]:
    annotation = RunConfig.model_fields[section].annotation
    assert annotation is not None
    return list(annotation.model_fields)


def _question(config: RunConfig) -> CheckQuestion:
    return CheckQuestion(config.dataset, config.model, config.training.max_length, config.training.seed)

"""Train: the settings of the training, steps and time, the start; then the run, live."""

import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.config.derived_defaults import SETTINGS, derive_defaults
from loratory.engine.config.load import setting_names
from loratory.engine.config.objectives import preference_name
from loratory.engine.config.presets import find_preset, list_presets
from loratory.engine.config.run import RunConfig
from loratory.engine.config.training import ObjectiveSettings
from loratory.engine.hardware.lease import lease_name
from loratory.engine.runs.prediction import plan_run
from loratory.engine.runs.summary import RunSummary
from loratory.ui import components as ui
from loratory.ui.backend.dataset_checks import CheckQuestion, lengths_stamp
from loratory.ui.draft import Draft, given_by_person
from loratory.ui.form import setting_in
from loratory.ui.gradio_internals import Dropdown, Radio, enclosing_tab
from loratory.ui.page import Page
from loratory.ui.tabs.follow import FollowPart
from loratory.ui.tabs.objective import ObjectivePart, with_preset
from loratory.ui.tabs.run_place import RunPlacePart
from loratory.ui.tabs.start import REFUSED, StartPart
from loratory.ui.views.draft import render_plan, render_presets
from loratory.ui.views.html import small

SET_UP, FOLLOW = "Set up", "Follow"
# The settings in sight, and how each is shown.
_IN_SIGHT: dict[str, dict[str, Any]] = {
    "run.name": {"placeholder": "automatic", "elem_id": "run-name"},
    "training.num_train_epochs": {"elem_id": "epochs"},
    "training.max_steps": {"elem_id": "max-steps"},
    "training.learning_rate": {"elem_id": "learning-rate"},
    "training.max_length": {"elem_id": "max-length"},
    "training.per_device_train_batch_size": {"elem_id": "batch", "maximum": 64},
    "training.gradient_accumulation_steps": {"elem_id": "accumulate", "maximum": 64},
    "training.packing": {"elem_id": "packing"},
    "training.gradient_checkpointing": {"elem_id": "checkpointing"},
}

_OF_OBJECTIVE = frozenset(f"training.{name}" for name in ObjectiveSettings.model_fields)
# Not over what a person chose, maybe while the answer was under way; the script `access` notes it.
_FOLLOW_IF_WANTED = "(wants, view) => ['', wants === 'follow' && !window.loratoryChose ? 'Follow' : view]"


class TrainTab:
    """Lays out the Train tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._tab = enclosing_tab()
        with gr.Row(equal_height=True, elem_id="train-top"):
            self.view = Radio(
                [SET_UP, FOLLOW], value=SET_UP, label="Set up a run, or follow one", show_label=False, container=False,
                elem_id="train-view", scale=0, min_width=190,
            )  # fmt: skip
            choice = Dropdown(
                [], label="Run", show_label=False, container=False, visible=False, elem_id="follow-run", min_width=260
            )
        with gr.Column(elem_id="train-setup") as self.setup:
            self.presets = ui.pick_list(self.render_presets(), elem_id="presets")
            page.on_fill(self.presets, lambda _: self.render_presets())
            self._settings()
            self.place = RunPlacePart(page)
            self.plan = gr.HTML(elem_id="plan")
            self.start = StartPart(page, self.seconds_of)
        with gr.Column(visible=False, elem_id="train-follow") as self.follow_column:
            self.follow = FollowPart(page, choice)
        self.counting = gr.Timer(0.5, active=False)
        page.on_draft_later(self.plan, self.render_draft_plan)
        self._count_outputs = [self.plan, self.counting, self.page.data_trouble, self.page.data_lengths, self.page.turn]

    def _settings(self) -> None:
        self.objective = ObjectivePart(self.page)
        # Components in a row have similar heights.
        name, epochs, steps, rate, length, batch, accumulate, packing, checkpointing = _IN_SIGHT
        for row in ([[name], [epochs], [steps]], [[rate], [length], [packing, checkpointing]], [[batch], [accumulate]]):
            with gr.Row():
                for column in row:
                    self._lay_out(column)
        names = [name for section in ("training.", "run.") for name in setting_names() if name.startswith(section)]
        with gr.Accordion("Advanced", open=False, elem_id="more-training"):
            more = [name for name in names if name not in (*_IN_SIGHT, *_OF_OBJECTIVE, "run.where")]
            for first in range(0, len(more), 4):  # fewer rows for the browser to go through
                with gr.Row():
                    for name in more[first : first + 4]:
                        self._lay_out([name])

    def _lay_out(self, names: Sequence[str]) -> None:
        """Place settings one below the other."""
        if len(names) == 1 and names[0] not in SETTINGS:
            self.page.form.setting(names[0], min_width=220, **_IN_SIGHT.get(names[0], {}))
            return
        with gr.Column(min_width=220, elem_classes="settings"):
            for name in names:
                self.page.form.setting(name, **_IN_SIGHT.get(name, {}))
                if name in SETTINGS:
                    note = gr.HTML(elem_classes="suited")
                    self.page.on_draft(note, functools.partial(render_suited, name))

    def wire(self) -> Dependency:
        """Connect the events; return the one after which a run may be queued."""
        page, form = self.page, self.page.form
        self.place.wire()
        self.objective.wire()
        self.use_preset_by(self.presets.click)
        self.presets.delete(ui.shown_as_message(self.delete_preset), None, self.presets, **ui.SLOW)
        for name in ("training.max_length", "training.seed"):  # what the number of tokens depends on
            # Counting reads every row: it waits for blur or Enter.
            self._count_after(gr.on([form[name].submit, form[name].blur], ui.nothing, None, None, **ui.QUICK))
        self.counting.tick(self.count, form.components, self._count_outputs, trigger_mode="once", **ui.QUICK)
        self.view.change(self.switch_view, self.view, [self.setup, self.follow_column, self.follow.choice], **ui.QUICK)
        self.follow.wire()
        arriving, views = [page.chosen_run, page.wants_run], [page.wants_run, self.view]
        arrival_event = self._tab.select(self.arrive, arriving, arriving, **ui.QUICK)
        arrival_event = arrival_event.then(None, views, views, js=_FOLLOW_IF_WANTED, **ui.QUICK)
        self.follow.show_after(arrival_event, self.view)
        self._count_after(arrival_event)
        self.follow.show_after(self.view.input(ui.nothing, None, None, **ui.QUICK), self.view)
        start_inputs = [self.start.goes_to, *self.follow.view_inputs]
        self.start.wire()
        start_outputs = [self.view, page.tabs, self.setup, self.follow_column, *self.follow.outputs]
        start_event = self.start.goes_to.change(self.after_start, start_inputs, start_outputs, **ui.QUICK)
        start_event.then(None, None, None, js=ui.script("scroll_to_start"), **ui.QUICK)
        return start_event

    def use_preset_by(self, click: Any) -> None:
        """Fill the form with the preset picked by a click."""
        self.fill_by(click, self.use_preset, "Preset")

    def fill_by(self, trigger: Any, handler: Callable[..., Any], title: str) -> None:
        """Fill the form with the settings that a handler returns for the form's values."""
        change = gr.State({})  # of this event alone, see `change_on`
        settings_event = trigger(ui.shown_as_message(handler), self.page.form.components, change, **ui.SLOW)
        alone = settings_event.success(lambda: "", None, self.page.copied_from, **ui.QUICK)
        self._count_after(self.page.fill_after(alone, change, title))

    def _count_after(self, event: Any) -> None:
        event.then(self.count, self.page.form.components, self._count_outputs, **ui.LATEST)

    def arrive(self, chosen: str, wants_run: str = "") -> ui.Updates:
        """Follow a requested run, or one that is active. Until one is chosen, it is the newest."""
        reader, page = self.page.reader, self.page
        run_id = chosen if reader.exists(chosen) else ""
        if run_id and (wants_run.startswith("follow") or reader.observe(run_id).is_live):
            return {page.wants_run: "follow"}
        if not run_id and (active := reader.newest_active()) is not None:
            return {page.wants_run: "follow", page.chosen_run: active}
        return {page.wants_run: "", page.chosen_run: run_id or next((row.id for row in reader.summaries()), "")}

    def after_start(self, goes_to: str, *how: Any) -> ui.Updates:
        """Show the run that was just queued, or the runs of a sweep, or why nothing started: all at once."""
        tab, run_id, *_ = goes_to.split()
        if tab == REFUSED:
            return {self.view: SET_UP, self.page.tabs: gr.Tabs(selected="train"), **self.switch_view(SET_UP)}
        updates = {**self.switch_view(FOLLOW), **self.follow.refresh(run_id, *how)}
        return {self.view: FOLLOW, self.page.tabs: gr.Tabs(selected=tab), **updates}

    def switch_view(self, view: str) -> ui.Updates:
        follows = gr.update(visible=view == FOLLOW)
        return {self.setup: gr.update(visible=view == SET_UP), self.follow_column: follows, self.follow.choice: follows}

    def use_preset(self, event: gr.EventData, *values: Any) -> dict[str, Any]:
        """Return the form's settings with those that a picked preset names; raises if its model cannot be read."""
        preset = find_preset(ui.picked_value(event), self.page.services.home)
        config, changes = preset.load(), self.objective.with_start(preset)
        if "id" in changes.get("model", {}):
            self.page.services.shapes.learn(config.model)
        now = self.page.read(values)
        return with_preset(given_by_person(now.sections, now.open_ones), changes, keeps_dataset=not preset.is_own)

    def render_presets(self) -> str:
        """Return the buttons of all presets, also those that the person saved."""
        return render_presets(list_presets(self.page.services.home))

    def delete_preset(self, event: gr.EventData) -> str:
        """Delete a picked preset if the person saved it; return the buttons of the others."""
        preset = find_preset(ui.picked_value(event), self.page.services.home)
        if preset.is_own:
            preset.path.unlink(missing_ok=True)
        return self.render_presets()

    def render_draft_plan(self, draft: Draft) -> str:
        return render_plan(*self.plan_facts(draft))

    def plan_facts(self, draft: Draft) -> tuple[Any, ...]:
        """Return what `render_plan` and `outlook` are given."""
        config, similar = draft.config, self.similar_run(draft)
        check = self.page.services.checks.find(CheckQuestion.from_config(config)) if config is not None else None
        report = check.report if check is not None else None
        plan_config = config or draft.memory_config
        answers = plan_config is None or plan_config.training.eval_max_new_tokens != 0
        return plan_config, report, similar, self.around_seconds(similar, answers=answers)

    def seconds_of(self, draft: Draft, configs: Sequence[RunConfig]) -> float | None:
        """Return how long variants of a draft take one by one; None if unknown."""
        _, report, similar, around_seconds = self.plan_facts(draft)
        if report is None or similar is None or not similar.tokens_per_second:
            return None
        plans = filter(None, (plan_run(config.training, report) for config in configs))
        return sum(plan.seen_tokens / similar.tokens_per_second + (around_seconds or 0) for plan in plans) or None

    def around_seconds(self, row: RunSummary | None, *, answers: bool = True) -> float | None:
        """Return the seconds that a run took to load, evaluate and save, also without its answers; None unless it completed."""
        if row is None or row.state != "completed" or row.seconds is None or not row.tokens_per_second:
            return None
        history = self.page.reader.observe(row.id).history
        tokens, answering = history.steps.last("tokens") or 0.0, sum(point.seconds for point in history.answers)
        around = row.seconds - tokens / row.tokens_per_second - (0.0 if answers else answering)
        return max(0.0, around) if tokens else None

    def count(self, request: gr.Request, *values: Any) -> ui.Updates:
        """Count the tokens in the background if needed; the timer shows the progress."""
        draft, checks = self.page.draft(values), self.page.services.checks
        if draft.config is None:
            return {self.counting: gr.update(active=False)}
        question, trouble = CheckQuestion.from_config(draft.config), self.page.data_trouble
        tokenizer = self.page.services.tokenizers.download(draft.config.model)
        error = self.page.services.tokenizers.trouble(draft.config.model) or checks.trouble(question)
        if error is not None:  # shown next to the start button and in the panel
            plan = self.render_draft_plan(draft)
            return {self.plan: plan, self.counting: gr.update(active=False), trouble: error.what}
        if tokenizer.is_under_way:
            note = small(f"Its tokens are counted once the tokenizer is here. {tokenizer.progress_text}", role="status")
            return {self.plan: self.render_draft_plan(draft) + note, self.counting: gr.update(active=True)}
        check = checks.request(question, request.session_hash or "")
        updates: ui.Updates = {self.counting: gr.update(active=check.is_under_way)}
        note = ""
        if check.waits or check.was_stopped:
            note = small("Its tokens are counted after “Read all rows” in the Data tab.")
        elif check.is_under_way:
            rows = check.progress.rows if check.progress is not None else 0
            note = small(f"Counting tokens: {rows:,} rows so far …", role="status")
        else:
            updates[trouble] = check.error.what if check.error is not None else ""
            updates[self.page.data_lengths] = lengths_stamp(check)
            updates[self.page.turn] = uuid.uuid4().hex  # a drawing that began before may arrive after this one
        return updates | {self.plan: self.render_draft_plan(draft) + note}

    def similar_run(self, draft: Draft) -> RunSummary | None:
        """Return the newest run with the same model, method and device and a known speed; None without one.

        One that completed is preferred: it also shows what loading, evaluation and saving take.
        """
        config = draft.config or draft.memory_config
        if config is None or draft.device is None:
            return None
        key = (config.model.id, config.method_name, preference_name(config), lease_name(draft.device))
        rows = (row for row in self.page.reader.glance().rows if row.tokens_per_second)
        same = [row for row in rows if (row.model, row.method, row.objective, row.device) == key]
        return next((row for row in same if row.state == "completed"), same[0] if same else None)


def render_suited(name: str, draft: Draft) -> str:
    """Return what a setting's default is suited to, and the default where another value is set."""
    default = draft.derived_defaults.get(name)
    if default is not None and default.awaits_rows and not draft.missing:
        return small("set once your rows are counted")
    if default is not None or draft.memory_config is None:
        return small(f"suited to {default.basis}") if default is not None and default.basis else ""
    usual = derive_defaults(draft.memory_config, draft.rows.known if draft.rows is not None else None)[name]
    differs = usual.basis and setting_in(draft.mapping, name) != usual.value
    return small(f"{usual.value:g} suits {usual.basis}") if differs else ""

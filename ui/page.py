"""What the tabs share: the form, the panel next to it, the chosen run, and one way to refresh."""

import functools
import json
import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import Component
from gradio.events import Dependency

from loratory.engine.config.derived_defaults import SETTINGS
from loratory.engine.runs.run import RUN_ID, Run
from loratory.ui import components as ui
from loratory.ui.backend.background import BackgroundWork, WorkProgress
from loratory.ui.backend.run_reader import FINAL, RunReader, SharedRuns
from loratory.ui.draft import Draft, fill_derived_defaults, known_rows, read_draft, read_settings, shape_of
from loratory.ui.form import ALL_LINEAR, DERIVED_DEFAULTS, JUDGE_FOR, Form, setting_in, targets_update
from loratory.ui.form_change import FormChange, Reading
from loratory.ui.gradio_internals import changed_by_hand
from loratory.ui.polls import WorkStatus
from loratory.ui.services import Services
from loratory.ui.views.html import start_status

_log = logging.getLogger(__name__)

DraftView = Callable[[Draft], Any]
FillView = Callable[[Mapping[str, Mapping[str, Any]]], Any]


def request_view(view: str, checkpoint: str = FINAL) -> str:
    """Return a new value of `Page.wants_run` or `Page.wants_result`, which begins with the view and the checkpoint."""
    return f"{view} {checkpoint} {uuid.uuid4().hex}"


class Page:
    """One page under construction; tabs lay themselves out, then wire themselves once all are laid out.

    Views of the form register with `on_draft`, slower ones with `on_draft_later`; one event redraws all of them. Views that
    change only when the whole form is filled register with `on_fill`.
    """

    tabs: gr.Tabs  # set when they are laid out

    def __init__(self, services: Services) -> None:
        self.services = services
        self.form = Form()
        self.reader = RunReader(services.runs)  # what all tabs know about runs
        person = services.person
        # Runs of other people of a lab; None without accounts.
        self.shared = SharedRuns.for_person(services.home, person, services.shared) if person is not None else None
        self.saved_draft = ui.browser_state({}, "draft")
        # A client's value: read it by `form.judged_device`.
        self.judge_for = self.form.register(JUDGE_FOR, gr.Textbox("", visible=False))
        self._defaults_note = self.form.register(DERIVED_DEFAULTS, gr.Textbox("", visible=False))
        self.chosen_run = ui.browser_state("", "run")
        # Of starts, which the bar makes in any tab: what is within one that was never in front is not laid out, and has no events.
        self.start_token = ui.browser_state("", "start")
        self.start_goes_to = gr.Textbox("", visible=False)
        self.starts: BackgroundWork[Sequence[Run]] = BackgroundWork(WorkProgress)  # by the key of a start
        self.start_job = WorkStatus(
            self.starts.find, start_status, elem_id="start-problems", live_id="start-live", is_laid_out=False
        )
        self.settings_copy = gr.State({})  # of a run, on their way into the form
        self.copied_from = ui.browser_state("", "copied-from")  # id of the run whose settings are the draft's, or ""
        self.other_run = gr.Textbox("", visible=False)  # another person's run of a lab, as `owner/run-id`
        # What to show of the chosen run, by `request_view`: in Train or Runs, and of its result in Chat or Export.
        self.wants_run, self.wants_result = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
        self.wants_data = gr.Textbox("", visible=False)  # changes when Data should open the form's dataset
        # Why the chosen dataset cannot be used for training; set by the tab that reads it, shown in the panel.
        self.data_trouble = gr.Textbox("", visible=False)
        # The kind of its rows, once it was opened: the objective depends on it.
        self.data_kind = gr.Textbox("", visible=False)
        # Changes with the lengths of its rows, on which the memory estimate depends.
        self.data_lengths = gr.Textbox("", visible=False)
        # Sent with the form: before the browser's draft is restored, the form is neither shown nor saved.
        self.is_restored = gr.Checkbox(False, visible=False)
        self.turn = gr.Textbox("", visible=False)  # changes when an event changed the form, or what is known of it
        # The last change of several settings, with its undo; laid out in the side panel.
        self.change_line = ui.pick_list(elem_id="applied", render=False)
        self.last_change = gr.State(None)
        self.views: dict[Component, DraftView] = {}
        self.later_views: dict[Component, DraftView] = {}
        self._fill_views: dict[Component, FillView] = {}

    def on_draft(self, component: Component, view: DraftView) -> None:
        """Redraw `component` whenever the form changes; `view` must take milliseconds."""
        self.views[component] = view

    def image_setting(self, name: str, **presentation: Any) -> None:
        """Place a setting of models that take images, visible where the draft's model has it."""
        component = self.form.show_problems_of(name, self.form.setting(name, visible=False, **presentation))
        self.on_draft(component, lambda draft: ui.visible_if(draft.has_image_setting(name)))

    def on_fill(self, component: Component, view: FillView) -> None:
        """Redraw `component` when the whole form is filled, not on single edits."""
        self._fill_views[component] = view

    def on_draft_later(self, component: Component, view: DraftView) -> None:
        """Like `on_draft`, for views that may take a tenth of a second."""
        self.later_views[component] = view

    def pause_timers(self, tab: gr.Tab, *timers: gr.Timer) -> None:
        """Stop timers when their tab is left."""
        others = [other.select for other in self.tabs.children if isinstance(other, gr.Tab) and other is not tab]
        for timer in timers:
            gr.on(others, None, None, timer, js=ui.TIMER_OFF, **ui.QUICK)

    def open_tab(self, event: Dependency, tab: str) -> None:
        """After an event, bring another tab to the front."""
        event.then(lambda: gr.Tabs(selected=tab), None, self.tabs, **ui.QUICK)

    def draft(self, values: Sequence[Any]) -> Draft:
        return read_draft(self.services, self.form, values)

    def settings(self, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Return the form's values as the draft has them, without an estimate."""
        return read_settings(self.services, self.form, values)

    def read(self, values: Sequence[Any]) -> Reading:
        return Reading(self.settings(values), frozenset(self.form.values_by_default(values)))

    def start_label(self, draft: Draft) -> str:
        """Return a description of the adapter that a draft continues from; empty for a new adapter."""
        start = str(draft.mapping["adapter"].get("warm_start") or "")
        if self.reader.exists(start):
            return f"the adapter of {self.reader.observe(start).title}"
        if RUN_ID.fullmatch(start):
            return f"the adapter of {start}, a deleted run"
        return f"the adapter in {Path(start).name}" if start else ""

    def wire(self, *, exclude: tuple[str, ...] = ()) -> Dependency:
        """Redraw on every edit of the form, except for settings in `exclude`, whose own events redraw; return an undo's event."""
        components = [self.form[name] for name in self.form.names if name not in exclude]
        inputs = [
            # Hidden components are set by events alone, which redraw with `refresh_after`.
            changed_by_hand(component) if component.visible else component.input
            for component in components
            if hasattr(component, "input")
        ]
        # Gradio clamps a number beyond the slider's end when its box loses focus.
        inputs += [component.release for component in components if isinstance(component, gr.Slider)]
        inputs.append(self.turn.change)
        defaults = [self.form[name] for name in SETTINGS]
        outputs = [*self.views, *defaults, self._defaults_note, self.change_line, self.saved_draft]
        self._follow(gr.on(inputs, self.redraw, self.redraw_inputs, outputs, **ui.LATEST))
        data_events: list[Any] = [self.data_trouble.change, self.data_kind.change, self.data_lengths.change]
        self.refresh_after(gr.on(data_events, ui.nothing, None, None, **ui.QUICK))
        undo_outputs = [*self._fill_outputs, self.last_change, self.copied_from]
        return self.refresh_after(self.change_line.click(self.undo, self.redraw_inputs, undo_outputs, **ui.QUICK))

    def restore(self, app: gr.Blocks) -> Dependency:
        """Restore this browser's draft when the page opens, and draw all views of it.

        It asks no other process, so it ends before a user can edit. The stored draft is not written before.
        """
        outputs = [*self._fill_outputs, *self.views, self.last_change, self.change_line, self.is_restored]
        return self._follow(app.load(self.restore_draft, self.saved_draft, outputs, **ui.QUICK))

    def refresh_after(self, event: Dependency) -> Dependency:
        """Redraw after an event that set form values.

        By the event of edits, of which one runs at a time: answers of two might arrive in the wrong order. The event that is
        returned ends before the redraw.
        """
        return event.then(None, None, self.turn, js="() => String(Math.random())", **ui.QUICK)

    def redraw_after(self, event: Dependency, *components: Component) -> Dependency:
        """Redraw views of the draft after an event that changed something else that they show."""
        return self._draw_after(event, {component: self.views[component] for component in components})

    def _draw_after(self, event: Dependency, views: Mapping[Component, DraftView]) -> Dependency:
        def draw(is_restored: bool, _last_change: FormChange | None, *values: Any) -> ui.Updates:
            return _draw_views(views, self.draft(values)) if is_restored else ui.UNCHANGED

        return event.then(draw, self.redraw_inputs, list(views), **ui.LATEST)

    def fill_after(self, event: Dependency, mapping: Component, title: str) -> Dependency:
        """Fill the form with the nested values in `mapping` after a successful event, then redraw.

        The page names them by `title` and offers to undo it. Where the model's modules are known already, they are the choice
        of targets.
        """
        fill = functools.partial(self.fill_form, title)
        outputs = [*self._fill_outputs, self.last_change]
        return self.refresh_after(event.success(fill, [mapping, *self.form.components], outputs, **ui.SLOW))

    def offer_targets_after(self, event: Dependency) -> Dependency:
        """Offer a model's modules as targets after an event that made them known."""
        targets = self.form["adapter.target_modules"]
        return self.refresh_after(event.then(self.offer_targets, self.form.components, targets, **ui.QUICK))

    def change_after(self, event: Dependency, change: Component, *, undo: bool = False) -> Dependency:
        """Set the values in `change`, by section, in the form after a successful event; the rest stays.

        Edits made during a slow event, such as reading a model from the Hub, are kept. With `undo`, the page also shows what
        changed, and offers to undo it.
        """
        components, handler = self.form.components, self.change_with_undo if undo else self.change
        outputs = [*self._fill_outputs, self.last_change] if undo else components
        return self.refresh_after(event.success(handler, [change, *components], outputs, **ui.SLOW))

    def change_on(
        self, trigger: Any, handler: Callable[..., Any], inputs: Any = None, *, undo: bool = False
    ) -> Dependency:
        """Set the values that the handler of an event returns, as `change_after` does.

        They are this event's alone: answers of two, such as of a tab that is opened and of a row in it, may cross.
        """
        change = gr.State({})
        return self.change_after(trigger(ui.shown_as_message(handler), inputs, change, **ui.SLOW), change, undo=undo)

    def _follow(self, event: Dependency) -> Dependency:
        return self._draw_after(event, self.later_views) if self.later_views else event

    @property
    def redraw_inputs(self) -> list[Component]:
        return [self.is_restored, self.last_change, *self.form.components]

    @property
    def _fill_outputs(self) -> list[Component]:
        return [*self.form.components, *self._fill_views]

    def redraw(self, is_restored: bool, last_change: FormChange | None, *values: Any) -> ui.Updates:
        if not is_restored:
            return ui.UNCHANGED
        draft = self.draft(values)
        device, default_updates = self.form.judged_device(values), self._update_defaults(draft, values)
        reading = Reading(draft.mapping, frozenset(self.form.values_by_default(values)))
        line = last_change.render(reading) if last_change is not None else ""
        page = {"derived_defaults": default_updates.get(self._defaults_note, "")}
        page |= {"judge_for": device.name} if device is not None else {}
        saved = {**draft.mapping, "page": page}
        return {
            **_draw_views(self.views, draft), **default_updates, self.change_line: line, self.saved_draft: saved,
        }  # fmt: skip

    def _update_defaults(self, draft: Draft, values: Sequence[Any]) -> ui.Updates:
        """Return the derived defaults that changed with the rest of the form, and a note of all unset ones."""
        now = self.form.values_by_default(values)
        note = now | {name: default.value for name, default in draft.derived_defaults.items() if name in now}
        names = [name for name, value in note.items() if value != now[name]]
        components = self._components(draft.mapping) if names else {}
        return {
            self._defaults_note: json.dumps(note),
            **{self.form[name]: components[self.form[name]] for name in names},
        }

    def restore_draft(self, saved: Any) -> ui.Updates:
        """Restore a stored draft; one that cannot be read leaves an empty form."""
        try:
            return self._opened_with(saved or {})
        except Exception:
            _log.exception("the browser's draft cannot be restored")
            return self._opened_with({})

    def _opened_with(self, saved: Mapping[str, Any]) -> ui.Updates:
        mapping = self._with_derived_defaults(saved)
        values = self.form.updates(mapping)
        draft, now = self.draft(values), self.read(values)
        updates = {**self.fill(mapping), **_draw_views(self.views, draft), self.is_restored: True}
        if not saved:
            return updates
        empty = self.read(self.form.updates(self._with_derived_defaults({})))
        change = FormChange("Draft restored", empty, now, until_edited=True)
        return {**updates, self.last_change: change, self.change_line: change.render(now)}

    def _with_derived_defaults(
        self, mapping: Mapping[str, Any], open_ones: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Fill in derived defaults, and note the unset ones: `open_ones`.

        Without `open_ones`, settings that are absent or equal to their derived default count as unset. A note from the
        browser is kept.
        """
        sections = {name: dict(settings) for name, settings in mapping.items()}
        if "derived_defaults" in sections.get("page", {}):
            return sections
        page = sections.pop("page", {})
        as_chosen: dict[str, dict[str, Any]] = {"model": {}, "dataset": {}}
        as_chosen |= {name: dict(settings) for name, settings in sections.items()}
        rows = known_rows(self.services, as_chosen)
        note = {}
        names = SETTINGS if open_ones is None else open_ones
        for name, default in fill_derived_defaults(as_chosen, names, rows).items():
            section, _, field = name.partition(".")
            settings = sections.setdefault(section, {})
            is_same = field in settings and settings[field] == default.value and not default.awaits_rows
            if open_ones is not None or field not in settings or is_same:
                note[name] = settings[field] = default.value
        for name in set(open_ones or ()) - note.keys():  # a wrong setting keeps the rules from choosing
            note[name] = setting_in(sections, name)
        return {**sections, "page": {**page, "derived_defaults": json.dumps(note)}}

    def fill_form(self, title: str, mapping: Mapping[str, Any] | None, *values: Any) -> ui.Updates:
        if not mapping:
            return ui.UNCHANGED
        sections = self._with_derived_defaults(mapping)
        after, note = self.read(self.form.updates(sections)), sections["page"].get("note", "")
        change = FormChange(title, self.read(values), after, note=note)
        return {**self.fill(sections), self.last_change: change}

    def change_with_undo(self, change: Mapping[str, Mapping[str, Any]] | None, *values: Any) -> ui.Updates:
        if not change:
            return ui.UNCHANGED
        before, names = self.read(values), {f"{section}.{name}" for section in change for name in change[section]}
        open_ones = {name: value for name, value in self.form.values_by_default(values).items() if name not in names}
        defaults_note = json.dumps(open_ones)
        merged = {**_merge(before.sections, change), "page": {"derived_defaults": defaults_note}}
        after = self.read(self.form.updates(merged))
        views = _draw_views(self._fill_views, after.sections) if {"adapter", "dataset"} & change.keys() else {}
        note = {self._defaults_note: defaults_note, self.last_change: FormChange("", before, after)}
        return {**self.change(change, *values), **views, **note}

    def undo(self, _is_restored: bool, last_change: FormChange | None, *values: Any) -> ui.Updates:
        """Restore the values before the last change, except for settings that were edited since."""
        if last_change is None:
            return ui.UNCHANGED
        now = self.read(values)
        before = last_change.undo(now)
        mapping = self._with_derived_defaults(before.sections, before.open_ones)
        after = self.read(self.form.updates(mapping))
        undone = FormChange(last_change.title, now, after, undoes=not last_change.undoes)
        components = self._components(mapping)
        settings = {self.form[name]: components[self.form[name]] for name in [*undone.names, DERIVED_DEFAULTS]}
        views = _draw_views(self._fill_views, mapping)
        copied_from = "" if last_change.title else gr.skip()
        return {**settings, **views, self.last_change: undone, self.copied_from: copied_from}

    def change(self, change: Mapping[str, Mapping[str, Any]] | None, *values: Any) -> ui.Updates:
        if not change:
            return ui.UNCHANGED
        names = {f"{section}.{name}" for section, settings in change.items() for name in settings}
        components = self._components(_merge(self.form.mapping(values), change))
        return {self.form[name]: components[self.form[name]] for name in names}

    def fill(self, mapping: Mapping[str, Any]) -> ui.Updates:
        return {**self._components(mapping), **_draw_views(self._fill_views, mapping)}

    def _components(self, mapping: Mapping[str, Any]) -> ui.Updates:
        updates = dict(zip(self.form.components, self.form.updates(mapping), strict=True))
        if "judge_for" not in mapping.get("page", {}):  # presets and runs name no device: the choice stays
            del updates[self.judge_for]
        if "derived_defaults" not in mapping.get("page", {}):
            del updates[self._defaults_note]
        targets = mapping.get("adapter", {}).get("target_modules", ALL_LINEAR)
        updates[self.form["adapter.target_modules"]] = targets_update(shape_of(self.services, mapping), targets)
        return {component: _within_reach(component, value) for component, value in updates.items()}

    def offer_targets(self, *values: Any) -> Any:
        mapping = self.draft(values).mapping
        shape = shape_of(self.services, mapping)
        if shape is None:
            return ui.UNCHANGED
        update, name = targets_update(shape, mapping["adapter"].get("target_modules")), "adapter.target_modules"
        if update["value"] == values[self.form.names.index(name)]:  # a person may have changed them meanwhile
            del update["value"]
        return update


def _merge(mapping: Mapping[str, Any], change: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**mapping, **{section: {**mapping.get(section, {}), **settings} for section, settings in change.items()}}


def _draw_views(views: Mapping[Component, Callable[[Any], Any]], value: Draft | Mapping[str, Any]) -> ui.Updates:
    return {component: view(value) for component, view in views.items()}


def _within_reach(component: Component, value: Any) -> Any:
    """Return the update of a component; a value beyond a slider's maximum raises that maximum."""
    beyond = isinstance(component, gr.Slider) and isinstance(value, int | float) and value > component.maximum
    return gr.update(value=value, maximum=value) if beyond else value

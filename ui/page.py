"""What the tabs share: the form, the panel beside it, the run that is being looked at, and one way to refresh."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import Component
from gradio.context import Context
from gradio.events import Dependency

from engine.config.load import with_overrides
from engine.models.shape import ModelShape
from engine.runs.store import RUN_ID
from ui.backend.run_reader import RunReader
from ui.draft import Draft, read_draft
from ui.fields import changed_by_hand
from ui.form import ALL_LINEAR, Form, model_of
from ui.services import Services

# What the browser keeps is no secret; a fixed key lets it be read again after the server was restarted.
STORAGE_KEY = "loratory"
EVERY_LAYER = [("every linear layer", ALL_LINEAR)]  # the choice of targets while no modules are known

_log = logging.getLogger(__name__)

DraftView = Callable[[Draft], Any]
FillView = Callable[[Mapping[str, Mapping[str, Any]]], Any]


@dataclass
class Page:
    """One page under construction; tabs lay themselves out, then wire themselves once everything stands.

    Views that depend on the form register with `on_draft`; one event then redraws all of them. What takes longer than
    a blink registers with `on_draft_later` and follows. What says how the form came to be as it is, such as a tick that
    a person may take back, registers with `on_fill`.
    """

    services: Services
    form: Form = field(default_factory=Form)
    # Both live in the browser, so that a reload keeps the draft and the run that was being looked at.
    saved_draft: gr.BrowserState = field(init=False)
    chosen_run: gr.BrowserState = field(init=False)
    copied_from: gr.BrowserState = field(init=False)  # id of the run whose settings the draft began as, or ""
    wants_run: gr.State = field(init=False)  # whether Train is to show the chosen run when it comes to the front
    tabs: gr.Tabs = field(init=False)
    reader: RunReader = field(init=False)  # what all tabs know about runs
    # What keeps the chosen dataset from being trained on; a tab that finds out puts it here, and the panel follows.
    data_trouble: gr.Textbox = field(init=False)
    _views: list[tuple[Component, DraftView]] = field(default_factory=list)
    _later_views: list[tuple[Component, DraftView]] = field(default_factory=list)
    _fill_views: list[tuple[Component, FillView]] = field(default_factory=list)
    # Sent along with the form: what the form was before is neither drawn nor kept, however late its answer comes.
    _restored: gr.Checkbox = field(init=False)

    def __post_init__(self) -> None:
        self.reader = RunReader(self.services.runs)
        self.saved_draft = gr.BrowserState({}, storage_key="loratory-draft", secret=STORAGE_KEY)
        self.chosen_run = gr.BrowserState("", storage_key="loratory-run", secret=STORAGE_KEY)
        self.copied_from = gr.BrowserState("", storage_key="loratory-copied-from", secret=STORAGE_KEY)
        self.wants_run = gr.State(False)
        self.data_trouble = gr.Textbox("", visible=False)
        self._restored = gr.Checkbox(False, visible=False)

    def on_draft(self, component: Component, view: DraftView) -> None:
        """Redraw `component` whenever the form changes; `view` must take milliseconds."""
        self._views.append((component, view))

    def on_fill(self, component: Component, view: FillView) -> None:
        """Redraw `component` when the whole form was filled with other values, and not when a person changes it."""
        self._fill_views.append((component, view))

    def on_draft_later(self, component: Component, view: DraftView) -> None:
        """Like `on_draft`, for views that may take a tenth of a second."""
        self._later_views.append((component, view))

    @staticmethod
    def tab_here() -> gr.Tab:
        """The tab that is being laid out. Its `select` fires however it is opened; that of `tabs` on clicks only."""
        block = Context.block
        while block is not None and not isinstance(block, gr.Tab):
            block = block.parent
        assert block is not None, "called outside of a tab"
        return block

    def elsewhere(self, tab: gr.Tab) -> list[Any]:
        """Triggers that say that `tab` was left."""
        return [other.select for other in self.tabs.children if isinstance(other, gr.Tab) and other is not tab]

    def open_tab(self, event: Dependency, tab: str) -> None:
        """After an event, bring another tab to the front."""
        event.then(
            lambda: gr.Tabs(selected=tab),
            None,
            self.tabs,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    def draft(self, values: Sequence[Any]) -> Draft:
        return read_draft(self.services, self.form, values)

    def begins_with(self, draft: Draft) -> str:
        """The adapter that a draft starts from, in words; empty where it starts a new one."""
        start = str(draft.mapping["adapter"].get("warm_start") or "")
        if self.reader.exists(start):
            return f"the adapter of {self.reader.observe(start).title}"
        if RUN_ID.fullmatch(start):
            return f"the adapter of {start}, a run that is gone"
        return f"the adapter in {Path(start).name}" if start else ""

    def wire(self, *, exclude: tuple[str, ...] = ()) -> None:
        """Redraw on every change that a person makes in the form.

        Args:
            exclude: Settings whose own event already ends in a redraw.
        """
        settings = [pair for pair in zip(self.form.names, self.form.components, strict=True) if pair[0] not in exclude]
        inputs = [
            # What cannot be seen is not changed by hand; who sets it redraws by `refresh_after`.
            changed_by_hand(component) if component.visible else component.input
            for _, component in settings
            if hasattr(component, "input")
        ]
        # What was typed beyond the end of a slider is moved there when its box is left.
        inputs += [component.release for _, component in settings if isinstance(component, gr.Slider)]
        refreshed = gr.on(
            inputs,
            self._refresh,
            self._refreshing,
            self._refreshed,
            trigger_mode="always_last",
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        self._follow(refreshed)
        found: Any = self.data_trouble.change
        self.refresh_after(
            found(lambda: None, None, None, show_progress="hidden", queue=False, api_visibility="private")
        )

    def restore(self, app: gr.Blocks) -> Dependency:
        """When the page opens, bring back the draft that this browser had, and draw all views of it.

        This asks no other process, so that it is over before a hand is at the form. Until then the browser's draft is
        not written.
        """
        restored = app.load(
            self._restore,
            self.saved_draft,
            [*self._filled, *(component for component, _ in self._views), self._restored],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        return self._follow(restored)

    def refresh_after(self, event: Dependency) -> Dependency:
        """Redraw after an event that set the form's values by itself.

        Twice: a hand may change the form meanwhile, and on a busy machine the redraw of that change may come back first.
        The second one sees the form as it is then.
        """
        for _ in range(2):
            event = event.then(
                self._refresh,
                self._refreshing,
                self._refreshed,
                show_progress="hidden",
                queue=False,
                api_visibility="private",
            )
        return self._follow(event)

    def fill_after(self, event: Dependency, mapping: Component) -> Dependency:
        """After an event that succeeded, put the nested values that `mapping` holds into the form, then redraw.

        Where the model's modules are known already, they are the choice of targets.
        """
        filled = event.success(self._fill, mapping, self._filled, show_progress="hidden", api_visibility="private")
        return self.refresh_after(filled)

    def settle_targets_after(self, event: Dependency) -> Dependency:
        """After an event that made a model's modules known, let them be the choice of targets."""
        settled = event.then(
            self._settle_targets,
            self.form.components,
            self.form["adapter.target_modules"],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        return self.refresh_after(settled)

    def change_after(self, event: Dependency, change: Component) -> Dependency:
        """After an event that succeeded, put the settings that `change` holds by section into the form; all others stay.

        So nothing is lost of what a person set while a slow event, such as reading a model from the Hub, was under way.
        """
        filled = event.success(
            self._change,
            [change, *self.form.components],
            self.form.components,
            show_progress="hidden",
            api_visibility="private",
        )
        return self.refresh_after(filled)

    def _follow(self, event: Dependency) -> Dependency:
        if not self._later_views:
            return event
        return event.then(
            self._refresh_later,
            self._refreshing,
            [component for component, _ in self._later_views],
            trigger_mode="always_last",
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    @property
    def _refreshing(self) -> list[Component]:
        return [self._restored, *self.form.components]

    @property
    def _refreshed(self) -> list[Component]:
        return [*(component for component, _ in self._views), self.saved_draft]

    @property
    def _filled(self) -> list[Component]:
        return [*self.form.components, *(component for component, _ in self._fill_views)]

    def _refresh(self, restored: bool, *values: Any) -> list[Any]:
        if not restored:
            return [gr.skip()] * len(self._refreshed)
        draft = self.draft(values)
        return [*(view(draft) for _, view in self._views), draft.mapping]

    def _refresh_later(self, restored: bool, *values: Any) -> list[Any]:
        if not restored:
            return [gr.skip()] * len(self._later_views)
        draft = self.draft(values)
        return [view(draft) for _, view in self._later_views]

    def _restore(self, saved: Any) -> list[Any]:
        """What a browser sends may be anything; what no version of ours can have saved leaves an empty form."""
        try:
            return self._opened_with(saved or {})
        except Exception:
            _log.exception("the browser's draft cannot be brought back")
            return self._opened_with({})

    def _opened_with(self, mapping: Mapping[str, Any]) -> list[Any]:
        draft = self.draft(self.form.updates(mapping))
        return [*self._fill(mapping), *(view(draft) for _, view in self._views), True]

    def _change(self, change: Mapping[str, Mapping[str, Any]] | None, *values: Any) -> list[Any]:
        if not change:
            return [gr.skip()] * len(self.form.names)
        mapping = self.form.mapping(values)
        changed = {f"{section}.{name}" for section, settings in change.items() for name in settings}
        sections = {section: {**mapping.get(section, {}), **settings} for section, settings in change.items()}
        filled = self._components({**mapping, **sections})
        return [value if name in changed else gr.skip() for name, value in zip(self.form.names, filled, strict=True)]

    def _fill(self, mapping: Mapping[str, Any] | None) -> list[Any]:
        if not mapping:
            return [gr.skip()] * len(self._filled)
        return [*self._components(mapping), *(view(mapping) for _, view in self._fill_views)]

    def _components(self, mapping: Mapping[str, Any]) -> list[Any]:
        values = self.form.updates(mapping)
        position = self.form.names.index("adapter.target_modules")
        targets = mapping.get("adapter", {}).get("target_modules", ALL_LINEAR)
        values[position] = targets_update(self._shape(mapping), targets)
        return [_within_reach(*pair) for pair in zip(self.form.components, values, strict=True)]

    def _settle_targets(self, *values: Any) -> Any:
        mapping = self.draft(values).mapping
        shape = self._shape(mapping)
        return gr.skip() if shape is None else targets_update(shape, mapping["adapter"].get("target_modules"))

    def _shape(self, mapping: Mapping[str, Any]) -> ModelShape | None:
        model = model_of({"model": mapping.get("model", {})})
        return self.services.shapes.get(model.id, model.revision) if model is not None else None


def _within_reach(component: Component, value: Any) -> Any:
    """A value beyond the end of its slider, which ends sooner than its setting, takes the end along."""
    beyond = isinstance(component, gr.Slider) and isinstance(value, int | float) and value > component.maximum
    return gr.update(value=value, maximum=value) if beyond else value


def targets_update(shape: ModelShape | None, targets: object) -> Any:
    """Choices and ticks of the target modules for a model; everything ticked where all linear layers are meant."""
    names = list(shape.linear_names()) if shape is not None else []
    if targets in (ALL_LINEAR, [], ()) or targets is None:
        return gr.update(choices=names or EVERY_LAYER, value=names or [ALL_LINEAR])
    chosen = [targets] if isinstance(targets, str) else [str(target) for target in targets]  # type: ignore[attr-defined]
    kept = [name for name in chosen if name in names]
    if not kept:
        # Nothing of it exists in this model, or its modules are not known yet: show it as it is.
        return gr.update(choices=[*names, *chosen], value=chosen)
    return gr.update(choices=names, value=kept)


def overridden(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A form's mapping with `section.field=value` changes applied, for one-click changes."""
    return with_overrides(mapping, overrides)

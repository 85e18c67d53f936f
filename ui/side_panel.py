"""The side panel: the draft and its memory, changes that help, and the measurement of its worst step on the device."""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.hardware.device import KNOWN_DEVICES, find_known_device
from loratory.engine.memory.advice import advise
from loratory.engine.memory.compare import with_changes
from loratory.engine.memory.estimate import Estimator
from loratory.engine.places.run_place import ThisMachine
from loratory.engine.supervision.memory_measurement import config_of_rows
from loratory.ui import components as ui
from loratory.ui.draft import Draft
from loratory.ui.gradio_internals import Dropdown
from loratory.ui.page import DraftView, Page
from loratory.ui.polls import WorkStatus
from loratory.ui.views.memory import OPENING_PANEL, render_advice, render_grid, render_measured_step, render_side_panel

_LENGTHS = (512, 1024, 2048, 4096, 8192)
_BATCHES = (1, 2, 4, 8)


class SidePanel:
    """Lays out the panel; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.change_line.render()
        self.panel = ui.pick_list(OPENING_PANEL, elem_id="panel")
        self.judge = Dropdown(_devices(ThisMachine.label), value="", label="Estimate memory for", elem_id="judge-for")
        # Changes with the place: choices are sent only then, not while a user picks one.
        self._place = gr.Textbox(ThisMachine.label, visible=False)
        self.job = WorkStatus(
            page.services.measurements.find, render_measured_step, elem_id="measured-step", live_id="measured-step-live"
        )
        self.start = gr.Button("Measure one step", size="sm", variant="secondary", visible=False, elem_id="measure")
        self.stop = gr.Button("Stop measuring", size="sm", variant="secondary", visible=False, elem_id="stop-measuring")
        self.advice = ui.pick_list(elem_id="advice")
        self._measuring = [*self.job.outputs, self.start, self.stop]
        page.on_draft(self.panel, lambda draft: render_side_panel(draft, page.start_label(draft)))
        for component in self._measuring:
            page.on_draft(component, self._measured_view(component))
        page.on_draft_later(self.advice, _render_advice)
        page.on_draft(self._place, lambda draft: draft.place_words)
        page.on_fill(self.judge, _judged_in)

    def wire(self) -> None:
        """Connect the events."""
        page, components = self.page, self.page.form.components
        for trigger, handler in (
            (self.start.click, self.begin),
            (self.stop.click, self.end),
            (self.job.changed, self.measurement),
        ):
            trigger(self._on_draft(handler), components, self._measuring, **ui.QUICK)

        chosen = self.judge.input(None, self.judge, page.judge_for, js="(name) => name ?? ''", **ui.QUICK)
        page.refresh_after(chosen)
        self._place.change(lambda place: gr.update(choices=_devices(place)), self._place, self.judge, **ui.QUICK)
        for component in (self.panel, self.advice):
            page.change_on(component.click, ui.picked_change, undo=True)

    def _measured_view(self, component: Any) -> DraftView:
        return lambda draft: self.measurement(draft)[component]

    def _on_draft(self, handler: Callable[[Draft], ui.Updates]) -> Callable[..., ui.Updates]:
        return ui.shown_as_message(lambda *values: handler(self.page.draft(values)))

    def begin(self, draft: Draft) -> ui.Updates:
        """Start to measure a step."""
        config = measured_config(draft)
        if config is None or draft.shape is None or draft.device is None:
            raise ConfigError([Problem("", "choose a model and correct the settings first.")])
        services = self.page.services
        expected = Estimator(draft.shape, draft.device).estimate_step(config)  # the panel's is of a whole run
        services.measurements.start(_key(config), "A measurement", services.measure(config, expected))
        return self.measurement(draft)

    def end(self, draft: Draft) -> ui.Updates:
        """Stop the measurement of a draft."""
        if (config := measured_config(draft)) is not None:
            self.page.services.measurements.stop(_key(config))
        return self.measurement(draft)

    def measurement(self, draft: Draft) -> ui.Updates:
        """Return the measurement of a draft, and whether it can be started."""
        config = measured_config(draft)
        updates = self.job.follow(_key(config) if config is not None else None)
        under_way, is_here = bool(updates[self.job.poll]), draft.memory_elsewhere is None and not draft.is_elsewhere
        return {
            **updates,
            self.start: ui.visible_if(is_here and config is not None and not under_way),
            self.stop: ui.visible_if(under_way),
        }


def measured_config(draft: Draft) -> RunConfig | None:
    """Return what can be measured: a step of the chosen rows."""
    if draft.memory_config is None or draft.estimate is None or draft.shape is None or draft.device is None:
        return None
    if draft.shape.takes_images:
        return None
    return config_of_rows(Estimator(draft.shape, draft.device, draft.rows), draft.memory_config)


def _judged_in(mapping: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the device of the estimate in a stored draft; presets and runs keep the current choice."""
    name = mapping.get("page", {}).get("judge_for")
    device = find_known_device(name) if isinstance(name, str) else None
    return ui.UNCHANGED if device is None else device.name


def _devices(place: str) -> list[tuple[str, str]]:
    """Return the choices of a device for the estimate: the run's own place, or another device."""
    return [(place, ""), *((device.title, device.name) for device in KNOWN_DEVICES)]


def _key(config: RunConfig) -> str:
    """Return the key of a measurement: everything that memory depends on."""
    parts = (config.model, config.adapter, config.training, config.run.devices)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _render_advice(draft: Draft) -> str:
    device, estimate = draft.device_memory.device, draft.device_memory.estimate
    if draft.shape is None or draft.memory_config is None or device is None or estimate is None:
        return ""
    advice = render_advice(advise(draft.shape, draft.memory_config, device, draft.rows), estimate)
    return advice + _memory_grid(Estimator(draft.shape, device), draft.memory_config)


def _memory_grid(estimator: Estimator, config: RunConfig) -> str:
    """Return the memory of the draft at other lengths and batches, its own among them."""
    training = config.training
    chosen = training.max_length, training.per_device_train_batch_size
    context = estimator.shape.max_position_embeddings or _LENGTHS[-1]
    lengths = {length for length in _LENGTHS if length <= context} | {chosen[0]}
    needs = {}
    for length, batch in itertools.product(lengths, {*_BATCHES, chosen[1]}):
        changes = {"training.max_length": length, "training.per_device_train_batch_size": batch}
        estimate = estimator.estimate(with_changes(config, changes))
        needs[length, batch] = estimate.needed_bytes, estimate.verdict
    return render_grid(needs, chosen, estimator.device.name)

"""Measure one step: the draft's worst one, really taken on the device, from the panel that never leaves."""

import hashlib
from typing import Any

import gradio as gr

from engine.errors import ConfigError, Problem
from engine.memory.estimate import Estimator
from engine.runs.memory_measurement import MeasuredStep
from ui.backend.background import Work
from ui.draft import Draft
from ui.errors import shown_as_message
from ui.page import Page
from ui.views.measured_step import render_measured_step

_LOOK_SECONDS = 1.5


class MeasureStep:
    """Lays out the button below the memory bar; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.shown = gr.HTML(elem_id="measured-step")
        self.start = gr.Button("Measure one step", size="sm", variant="secondary", visible=False, elem_id="measure")
        self.stop = gr.Button("Stop measuring", size="sm", variant="secondary", visible=False, elem_id="stop-measuring")
        self.timer = gr.Timer(_LOOK_SECONDS, active=False)
        page.on_draft(self.shown, lambda draft: render_measured_step(self._work(draft)))
        page.on_draft(self.start, self._start_button)
        page.on_draft(self.stop, lambda draft: gr.update(visible=_under_way(self._work(draft))))
        page.on_draft(self.timer, lambda draft: gr.Timer(active=_under_way(self._work(draft))))

    def wire(self) -> None:
        """Connect the events."""
        page = self._page
        outputs = [self.shown, self.start, self.stop, self.timer]
        for trigger, handler in (
            (self.start.click, self._begin),
            (self.stop.click, self._end),
            (self.timer.tick, self._look),
        ):
            trigger(
                shown_as_message(handler),
                page.form.components,
                outputs,
                show_progress="hidden",
                queue=False,
                api_visibility="private",
            )

    def _begin(self, *values: Any) -> list[Any]:
        draft = self._page.draft(values)
        if draft.assumed is None or draft.estimate is None or draft.shape is None or draft.device is None:
            raise ConfigError([Problem("", "choose a model and correct the settings first.")])
        services = self._page.services
        expected = Estimator(draft.shape, draft.device).estimate_step(draft.assumed)  # the panel's is of a whole run
        services.measurements.start(_key(draft), "A measurement", services.measure(draft.assumed, expected))
        return self._state(draft)

    def _end(self, *values: Any) -> list[Any]:
        draft = self._page.draft(values)
        self._page.services.measurements.stop(_key(draft))
        return self._state(draft)

    def _look(self, *values: Any) -> list[Any]:
        return self._state(self._page.draft(values))

    def _state(self, draft: Draft) -> list[Any]:
        work = self._work(draft)
        return [
            render_measured_step(work),
            self._start_button(draft),
            gr.update(visible=_under_way(work)),
            gr.Timer(active=_under_way(work)),
        ]

    def _start_button(self, draft: Draft) -> Any:
        return gr.update(visible=draft.estimate is not None and not _under_way(self._work(draft)))

    def _work(self, draft: Draft) -> Work[MeasuredStep] | None:
        return self._page.services.measurements.look(_key(draft)) if draft.assumed is not None else None


def _under_way(work: Work[MeasuredStep] | None) -> bool:
    return work is not None and work.is_under_way


def _key(draft: Draft) -> str:
    """What memory depends on; the same for every page with this draft."""
    assert draft.assumed is not None
    config = draft.assumed
    parts = (config.model, config.adapter, config.training, config.run.devices)
    return hashlib.sha256(repr(parts).encode()).hexdigest()

"""Rewards: the scorers of a run that learns from them, and a try of them before it starts."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from loratory.engine.config.derived_defaults import planned_steps
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.evaluation.try_reward import TryRewardConfig, TryRewardJob, TryRewardResult
from loratory.ui.backend.background import Work
from loratory.ui.components import QUICK, Updates, pick_list, picked_value, shown_as_message, visible_if
from loratory.ui.draft import Draft
from loratory.ui.page import Page
from loratory.ui.polls import WorkStatus
from loratory.ui.views.html import small, work_status
from loratory.ui.views.rewards import render_rewards, render_tried, render_try

_MOST_SHOWN = 3  # prompts while the rest is answered


class RewardsPart:
    """Lays out the cards and the try; visible for an objective that samples answers."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.form.register("training.rewards", gr.State([]))
        with gr.Column(visible=False, elem_id="rewards-part") as column:
            self.cards = pick_list(elem_id="rewards", more=("rewards",))
            page.form.show_problems_of("training.rewards", self.cards)
            with gr.Row():
                self.start = gr.Button("Try reward", scale=0, min_width=150, visible=False, elem_id="try-reward")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="try-reward-stop")
            self.job = WorkStatus(
                page.services.tries.find, self.render_work, elem_id="try-reward-status", live_id="try-reward-live"
            )
        self._outputs = [*self.job.outputs, self.start, self.stop]
        page.on_draft(column, lambda draft: visible_if(draft.objective.samples_answers))
        page.on_draft(self.cards, lambda draft: render_rewards(draft.mapping["training"].get("rewards") or ()))
        for component in self._outputs:
            page.on_draft(component, self._view_of(component))

    def wire(self) -> None:
        """Connect the events."""
        components = self.page.form.components
        self.page.change_on(self.cards.click, picked_rewards, undo=True)
        for trigger, handler in (
            (self.start.click, self.begin),
            (self.stop.click, self.end),
            (self.job.changed, self.state),
        ):
            trigger(self._on_draft(handler), components, self._outputs, **QUICK)

    def _view_of(self, component: Any) -> Callable[[Draft], Any]:
        return lambda draft: self.state(draft)[component]

    def _on_draft(self, handler: Callable[[Draft], Updates]) -> Callable[..., Updates]:
        return shown_as_message(lambda *values: handler(self.page.draft(values)))

    def begin(self, draft: Draft) -> Updates:
        """Start to try the rewards of a draft."""
        if (config := draft.config) is None:
            raise ConfigError([*draft.problems[:1]] or [Problem("", "choose a model and a dataset first.")])
        services = self.page.services
        services.tries.start(_key(config), "A try of rewards", services.try_reward(config, TryRewardConfig()))
        return self.state(draft)

    def end(self, draft: Draft) -> Updates:
        """Stop the try of a draft."""
        if draft.config is not None:
            self.page.services.tries.stop(_key(draft.config))
        return self.state(draft)

    def state(self, draft: Draft) -> Updates:
        """Return the try of a draft's rewards, and whether it can be started."""
        config = draft.config if draft.objective.samples_answers else None
        updates = self.job.follow(_key(config) if config is not None else None)
        under_way = bool(updates[self.job.poll])
        return {
            **updates,
            self.start: visible_if(config is not None and not under_way),
            self.stop: visible_if(under_way),
        }

    def render_work(self, work: Work[TryRewardResult] | None) -> str:
        """Return the result of a try; while it runs its progress, and the prompts that are answered."""
        if work is None:
            return small("Lets the model answer 20 prompts and scores the answers, before any training.")
        job = work.job
        assert isinstance(job, TryRewardJob)
        if work.result is not None:
            return render_try(work.result, job.config, planned_steps(job.config, None))
        labels = [reward.label for reward in job.config.training.rewards]
        return work_status(work, "Stopped.") + render_tried(job.prompts[-_MOST_SHOWN:], labels)


def picked_rewards(event: gr.EventData) -> dict[str, dict[str, Any]]:
    """Return the scorers that the cards have, a client's; what is wrong with them is shown with the draft."""
    try:
        values = json.loads(picked_value(event))
    except ValueError:
        values = None
    if not isinstance(values, list):
        raise ConfigError([Problem("training.rewards", "these are not scorers.")])
    return {"training": {"rewards": [value for value in values if isinstance(value, dict)]}}


def _key(config: RunConfig) -> str:
    """Return the key of a try: everything that the answers and their rewards depend on."""
    training, names = (
        config.training,
        ("rewards", "num_generations", "max_completion_length", "temperature", "top_p", "seed", "max_length"),
    )
    parts = (config.model, config.adapter.warm_start, config.dataset, *(getattr(training, name) for name in names))
    return hashlib.sha256(repr(parts).encode()).hexdigest()

"""Rewards: the scorers of a run that learns from them, and a try of them before it starts."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from loratory.engine.config.derived_defaults import planned_steps
from loratory.engine.config.run import SET_PREFIX, RunConfig
from loratory.engine.data.contract import SetQuestion
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.source import SourceOptions, path_of
from loratory.engine.data.workshop.sets import find_set, find_version, pinned
from loratory.engine.errors import ConfigError, DatasetError, Problem
from loratory.engine.evaluation.try_reward import TryRewardConfig, TryRewardJob, TryRewardResult, judge
from loratory.engine.runs.disk import require_disk_space
from loratory.ui.backend.background import Work
from loratory.ui.components import QUICK, Updates, pick_list, picked_value, shown_as_message, visible_if
from loratory.ui.draft import Draft
from loratory.ui.page import Page
from loratory.ui.polls import WorkStatus
from loratory.ui.tabs.data import with_source
from loratory.ui.views.html import small, work_status
from loratory.ui.views.rewards import render_actions, render_rewards, render_tried, render_try

_MOST_SHOWN = 3  # prompts while the rest is answered


class RewardsPart:
    """Lays out the cards and the try; visible for an objective that samples answers."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.form.register("training.rewards", gr.State([]))
        with gr.Column(visible=False, elem_id="rewards-part") as column:
            self.cards = pick_list(elem_id="rewards", more=("cards", "rewards"))
            page.form.show_problems_of("training.rewards", self.cards)
            self.actions = pick_list(visible=False, elem_id="try-reward")
            self.job = WorkStatus(
                page.services.tries.find, self.render_work, elem_id="try-reward-status", live_id="try-reward-live"
            )
        self._outputs = [*self.job.outputs, self.actions]
        page.on_draft(column, lambda draft: visible_if(draft.objective.samples_answers))
        page.on_draft(self.cards, lambda draft: render_rewards(draft.mapping["training"].get("rewards") or ()))
        for component in self._outputs:
            page.on_draft(component, self._view_of(component))

    def wire(self) -> None:
        """Connect the events."""
        components = self.page.form.components
        self.page.change_on(self.cards.click, picked_rewards, undo=True)
        self.actions.click(shown_as_message(self._on_pick), components, self._outputs, **QUICK)
        self.job.changed(self._on_draft(self.state), components, self._outputs, **QUICK)
        kept_event = self.page.change_on(self.actions.submit, self._on_draft(self.keep), components, undo=True)
        kept_event.then(None, None, self.page.wants_data, js="() => String(Math.random())", **QUICK)

    def _view_of(self, component: Any) -> Callable[[Draft], Any]:
        return lambda draft: self.state(draft)[component]

    def _on_draft(self, handler: Callable[[Draft], dict[Any, Any]]) -> Callable[..., Any]:
        return shown_as_message(lambda *values: handler(self.page.draft(values)))

    def _on_pick(self, event: gr.EventData, *values: Any) -> Updates:
        return self.act(self.page.draft(values), picked_value(event))

    def act(self, draft: Draft, pick: str) -> Updates:
        """Start to try the rewards of a draft, with some prompts or all; or stop."""
        if (config := draft.config) is None:
            raise ConfigError([*draft.problems[:1]] or [Problem("", "choose a model and a dataset first.")])
        services = self.page.services
        if pick == "stop":
            services.tries.stop(self.key(config))
        else:
            settings = TryRewardConfig(prompts=None) if pick == "all" else TryRewardConfig()
            services.tries.start(self.key(config), "A try of rewards", services.try_reward(config, settings))
        return self.state(draft)

    def keep(self, draft: Draft) -> dict[str, Any]:
        """Exclude what was not sometimes right from the set of a draft, or from a new one; return the change to it."""
        services, config, result = self.page.services, draft.config, self._result(draft)
        if config is None or result is None or not _can_keep(result, config):
            raise ConfigError([Problem("dataset.source", "its prompts were not tried as they are; try them again.")])
        query, source = services.inspector.sets, config.dataset.source.strip()
        require_disk_space(services.home, services.home.owner)
        if not source.startswith(SET_PREFIX):
            bytes_ = path_of(source, SourceOptions(home=services.home).access).stat().st_size
            require_disk_space(services.home, services.home.owner, bytes_)
            source = f"{SET_PREFIX}{query(SetQuestion(do='make', dataset=config.dataset))['name']}"
        dataset = find_set(services.home, find_version(services.home, source).name)
        marks = [mark.model_dump(mode="json") for mark in result.keep_sometimes(dataset.facts.rows)]
        query(SetQuestion(do="apply", name=dataset.name, operations=marks))
        services.checks.forget(config.dataset)
        now = f"{SET_PREFIX}{dataset.name}"
        return {"dataset": {"source": now}} if config.dataset.source.startswith(SET_PREFIX) else with_source(now)

    def state(self, draft: Draft) -> Updates:
        """Return the try of a draft's rewards, and what can be done with it."""
        config = draft.config if draft.objective.samples_answers else None
        if config is None:
            return {**self.job.follow(), self.actions: gr.update(value="", visible=False)}
        updates, result = self.job.follow(self.key(config)), self._result(draft)
        right = len(result.sometimes_right) if result is not None and _can_keep(result, config) else 0
        actions = render_actions(result, right=right, is_under_way=bool(updates[self.job.poll]))
        return {**updates, self.actions: gr.update(value=actions, visible=True)}

    def key(self, config: RunConfig) -> str:
        """Return the key of a try: everything that the answers and their rewards depend on, also the version of a set."""
        training, dataset = config.training, config.dataset
        with contextlib.suppress(DatasetError):
            dataset = dataset.model_copy(update={"source": pinned(dataset.source, self.page.services.home)})
        names = "rewards num_generations max_completion_length temperature top_p seed max_length".split()
        parts = (config.model, config.adapter.warm_start, dataset, *(getattr(training, name) for name in names))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _result(self, draft: Draft) -> TryRewardResult | None:
        work = self.page.services.tries.find(self.key(draft.config)) if draft.config is not None else None
        return work.result if work is not None else None

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


def _can_keep(result: TryRewardResult, config: RunConfig) -> bool:
    """Return whether prompts of a try can be kept: some of a set, a file or a sample, where no scorer fails."""
    is_one_file = not config.dataset.mix and not is_on_hub(config.dataset.source)
    return is_one_file and bool(result.sometimes_right) and judge(result).kind != "failing"

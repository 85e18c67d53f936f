"""Merge the adapters of several runs into one: a run of its own, which chats, measures and exports like any other."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loratory.engine.chat.contract import ChatTarget, FrozenModel, JobProgress, OnProgress
from loratory.engine.chat.target import LoadPlan, plan_load
from loratory.engine.config.results import EvaluationConfig, MergeConfig
from loratory.engine.config.run import RunConfig
from loratory.engine.data.hub import hub_access
from loratory.engine.errors import ModelError, RunError
from loratory.engine.evaluation.job import EvaluationRequest
from loratory.engine.export.job import WORKER_MODULE, FolderJob, require_trained
from loratory.engine.files import fsync_tree
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.runs.history.events import BaseWeightsData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.provenance import ADAPTER_CONFIG, Provenance, environment_facts, trained_base
from loratory.engine.runs.run import Run, RunFolder, RunState
from loratory.engine.runs.store import RunStore


class MergeOrder(FrozenModel):
    """The request for the worker process."""

    plans: tuple[LoadPlan, ...]  # of the parts, all on one base
    weights: tuple[float, ...]
    settings: MergeConfig
    folder: Path  # that of the adapter; an empty one next to it for the worker


@dataclass(eq=False)
class MergeJob(FolderJob):
    """One merge; can be stopped from another thread."""

    store: RunStore
    parts: Sequence[Run]
    weights: Sequence[float]
    settings: MergeConfig = field(default_factory=MergeConfig)
    name: str = ""  # of the new run; empty for those of its parts

    def run(self, on_progress: OnProgress = lambda _: None) -> Run:
        """Merge, and return the new run; on any error there is none.

        Raises:
            RunError: If there are fewer than two parts, weights do not match them, or one has no adapter yet.
            ModelError: If PEFT cannot merge these adapters, or they were trained on different weights.
            StorageError: If the run's folder cannot be written.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        if len({part.id for part in self.parts}) < 2 or len(self.parts) != len(self.weights):
            fix = "Name at least two runs, and a weight for each of them."
            raise RunError(f"{len(self.parts)} runs and {len(self.weights)} weights cannot be merged.", fix)
        plans = tuple(plan_load(ChatTarget.of_run(part.folder.path), self.home) for part in self.parts)
        bases = {(plan.model.id, plan.model.revision, require_trained(plan).base) for plan in plans}
        if len(bases) > 1:
            raise ModelError("These runs were trained on different weights.", "Merge runs on one base model.")
        for plan in plans:
            _require_mergeable(plan)
        title, folder = (
            " + ".join(require_trained(plan).name for plan in plans),
            self.home.cache / "merges" / self.parts[0].id,
        )
        job = DeviceJob(
            home=self.home, module=WORKER_MODULE, purpose="export", title=title, device=describe_processor(),
            holds_device=False, access=hub_access(plans[0].model), model=plans[0].model.id,
        )  # fmt: skip
        on_progress(JobProgress(phase="starting", message="Starting a process for the merge."))
        order = MergeOrder(plans=plans, weights=tuple(self.weights), settings=self.settings, folder=folder)
        self._fill(job, "merge", order, folder, on_progress)
        try:
            return self._create(folder, title)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _create(self, adapter: Path, title: str) -> Run:
        configs = [part.folder.read_config() for part in self.parts]
        config, rank = merged_config(configs), json.loads((adapter / ADAPTER_CONFIG).read_bytes())["r"]
        changes = {
            "run": config.run.model_copy(update={"name": self.name or title[:100], "where": "local"}),
            "adapter": config.adapter.model_copy(update={"r": rank, "lora_alpha": rank, "warm_start": None}),
        }
        facts = environment_facts() | {
            "merged_from": {part.id: weight for part, weight in zip(self.parts, self.weights, strict=True)},
            "merge_method": self.settings.method,
            "person": self.home.owner,
        }

        def complete(folder: RunFolder) -> None:
            shutil.copytree(adapter, folder.adapter)
            fsync_tree(folder.adapter)
            with EventWriter(folder.events, attempt=1) as log:
                log.append(BaseWeightsData(files=trained_base(self.parts[0].folder)))
            now = time.time()
            folder.write_state(RunState(state="completed", reason="finished", attempt=1, changed=now, ended=now))

        return self.store.create(config.model_copy(update=changes), Provenance.model_validate(facts), complete=complete)


def comparing_evaluations(runs: Sequence[Run]) -> Iterator[tuple[Run, EvaluationRequest]]:
    """Yield what lets each run answer the test sets of all; nothing where they have none."""
    tests = {run.id: run.folder.read_config().evaluation.tests for run in runs}
    all_tests = dict.fromkeys(test for own in tests.values() for test in own)
    settings = EvaluationConfig(answered_rows=0, general_text=False)
    for run in runs if all_tests else ():
        missing = tuple(test for test in all_tests if test not in tests[run.id])
        yield run, EvaluationRequest(target=ChatTarget.of_run(run.folder.path), settings=settings, tests=missing)


def _require_mergeable(plan: LoadPlan) -> None:
    trained = require_trained(plan)
    values = json.loads((trained.folder / ADAPTER_CONFIG).read_bytes()) if not trained.is_whole_model else {}
    if trained.peft_type != "LORA" or values.get("use_dora"):
        what = f"{trained.name} is {'DoRA' if values.get('use_dora') else trained.peft_type or 'a whole model'}."
        raise ModelError(what, "PEFT merges LoRA adapters; train it again with LoRA, rsLoRA or QLoRA.")


def merged_config(configs: Sequence[RunConfig]) -> RunConfig:
    """Return the settings of a merge: those of the first part, with the rows and test sets of all.

    Rows of other parts are mixed in where they are read in the same way; they decide what is measured.
    """
    first = configs[0]
    dataset, tests = first.dataset, dict.fromkeys(test for config in configs for test in config.evaluation.tests)
    for other in (config.dataset for config in configs[1:]):
        if other.model_copy(update={"source": dataset.source, "mix": dataset.mix}) == dataset:
            sources = {other.source: 1.0, **other.mix}
            mix = {name: weight for name, weight in sources.items() if name != dataset.source}
            dataset = dataset.model_copy(update={"mix": {**mix, **dataset.mix}})
    evaluation = first.evaluation.model_copy(update={"tests": tuple(tests)[:20]})
    return first.model_copy(update={"dataset": dataset, "evaluation": evaluation})

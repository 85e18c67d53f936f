"""Evaluate a run on its held-out rows: the request, the result, and the job that runs in a separate process."""

import contextlib
import importlib.util
import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from loratory.engine.chat.contract import AdapterChoice, Branch, ChatTarget, FrozenModel, JobProgress, OnProgress
from loratory.engine.chat.target import LoadPlan, plan_load
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.results import EvaluationConfig, EvaluationSection, TestSet
from loratory.engine.config.run import SET_PREFIX, DatasetConfig, RunConfig, RunSection
from loratory.engine.data.hub import hub_access
from loratory.engine.data.workshop.exchange import add_set
from loratory.engine.data.workshop.sets import find_set, pinned, set_names
from loratory.engine.errors import ConfigError, EngineError, RunError, StorageError
from loratory.engine.evaluation.preference import (
    RATING_COLUMNS,
    PreferenceResult,
    RatingResult,
    describe_accuracy,
    describe_flips,
    describe_ratings,
    rating_cells,
)
from loratory.engine.evaluation.samples import TestResult
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.devices import choose_device
from loratory.engine.lab.rules import lab_problems
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.places import machine_of
from loratory.engine.processes.spawn import Access
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.history.verdict import FORGOT, Forgetting
from loratory.engine.runs.provenance import read_provenance, start_of
from loratory.engine.runs.run import RunFolder
from loratory.engine.runs.test_scores import EVALUATIONS_FOLDER
from loratory.engine.scoring.scorers.judge import key_environment

WORKER_MODULE = "loratory.engine.evaluation.worker.main"


class EvaluationRequest(FrozenModel):
    """The run to evaluate, and the settings."""

    target: ChatTarget  # a run, with or without a checkpoint
    settings: EvaluationConfig = EvaluationConfig()
    tests: tuple[TestSet, ...] = ()  # in addition to those of the run
    lm_eval: tuple[str, ...] = ()  # its tasks, or their files


class EvaluationOrder(FrozenModel):
    """The request for the worker process, with folders, settings and device resolved."""

    plan: LoadPlan
    run: RunConfig
    settings: EvaluationConfig
    device: Device
    folder: Path  # of the results, where losses of tokens are kept
    lm_eval: tuple[str, ...] = ()
    writes_replay: bool = False  # general rows of the base model, if the run forgot
    data_fingerprint: str | None = None  # of the data that the run was trained on


def perplexity_of(loss: float) -> float:
    """Return the perplexity of a loss in nats; the exponent is limited to 700, where it would overflow."""
    return math.exp(min(loss, 700.0))


class BranchLoss(FrozenModel):
    """Mean loss over all trained tokens of the held-out rows, in nats."""

    loss: float
    perplexity: float  # exp(loss)
    tokens: int

    @classmethod
    def from_loss(cls, loss: float, tokens: int) -> "BranchLoss":
        """Return the loss with its perplexity."""
        return cls(loss=loss, perplexity=perplexity_of(loss), tokens=tokens)


class AnswerScores(FrozenModel):
    """An answer against its reference. `exact` ignores white space; the other scores are from 0 to 1."""

    exact: bool
    rouge_l: float
    chrf: float


class BranchAnswer(FrozenModel):
    """The answer of one branch to a row."""

    text: str
    tokens: int
    scores: AnswerScores


class AnsweredRow(FrozenModel):
    """A held-out row with its reference and the answers to it."""

    row: int  # of the dataset, from 0
    prompt: str
    reference: str
    answers: dict[Branch, BranchAnswer]
    images: tuple[str, ...] = ()  # digests of those of the prompt, in the media store


class MeanScores(FrozenModel):
    """Means over the answered rows."""

    exact: float
    rouge_l: float
    chrf: float
    rows: int


MOST_ROW_LOSSES = 1_000  # that a result keeps
WORSE_BY = 0.02  # nats: less is within the rounding of 16 bits


class RowLoss(FrozenModel):
    """Mean losses of one held-out row, in nats per trained token."""

    row: int  # of the dataset, from 0
    base: float
    tuned: float


class RowTokens(RowLoss):
    """A row with the text of each trained token and its loss by branch."""

    pieces: tuple[str, ...]
    tokens: dict[Branch, tuple[float, ...]]


class EvaluationResult(FrozenModel):
    """The result of an evaluation. All branches have the same rows with the same masking."""

    losses: dict[Branch, BranchLoss]
    rows: int  # that the loss was measured on
    scores: dict[Branch, MeanScores]  # empty if no row was answered
    # Those with the worst tuned answers first.
    answered_rows: tuple[AnsweredRow, ...] = Field(
        default=(), validation_alias="answered", serialization_alias="answered"
    )
    row_losses: tuple[RowLoss, ...] = ()  # of at most `MOST_ROW_LOSSES` rows; empty in older results
    lists: dict[str, tuple[RowTokens, ...]] = Field(default_factory=dict)  # rows that stand out
    source: str = ""  # whose rows all were measured; empty for the held-out rows
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    general_losses: dict[Branch, BranchLoss] = Field(default_factory=dict)  # on general text; empty if not requested
    forgetting_interval: tuple[float, float] | None = None  # 95%, by bootstrap over the texts
    replay: str = ""  # the set of general rows that the base wrote, where the run forgot; set:NAME
    replay_tokens: int = 0  # about how many they have
    preference: PreferenceResult | None = None  # on held-out pairs, for runs that train on pairs
    ratings: RatingResult | None = None  # on held-out completions, for runs that train on labels
    tests: tuple[TestResult, ...] = ()  # on the run's test sets
    lm_eval: dict[Branch, dict[str, float]] = Field(default_factory=dict)  # by task and metric
    # Name of what a preference run started from, which is the branch `second`; empty where not measured.
    start: str = ""

    @property
    def preference_accuracy(self) -> float | None:
        """The share of held-out pairs, or of labelled completions, on which the tuned model is right."""
        result = self.preference or self.ratings
        return result.accuracy if result is not None and "tuned" in result.branches else None

    @property
    def gain(self) -> float | None:
        """Relative decrease of the loss on held-out rows from base to tuned; negative if it rose.

        None if every row is an undesirable completion.
        """
        rise = rise_of(self.losses) if self.ratings is None or self.ratings.desirable else None
        return None if rise is None else -rise

    @property
    def forgetting(self) -> float | None:
        """Relative increase of the loss on general text from base to tuned; negative if it fell.

        None if it was not measured.
        """
        return rise_of(self.general_losses)


def rise_of(losses: Mapping[Branch, BranchLoss]) -> float | None:
    """Return the relative increase of a loss from base to tuned; None where it was not measured."""
    base, tuned = losses.get("base"), losses.get("tuned")
    if base is None or tuned is None or base.loss <= 0 or not math.isfinite(tuned.loss / base.loss):
        return None
    return tuned.loss / base.loss - 1


_BYTES_PER_TOKEN = 4  # about, in most languages

_SMALLEST_CHANGE = 0.0005  # smaller ones would be shown as 0.0%


def describe_forgetting(forgetting: float, interval: tuple[float, float] | None = None) -> str:
    """Return "forgot 3% (95% interval 2% to 5%)", or "no forgetting" if the loss on general text did not rise."""
    if forgetting < _SMALLEST_CHANGE:
        return "no forgetting"
    return f"forgot {_percent(forgetting)}" + (
        f" (95% interval {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
    )


def describe_gain(gain: float) -> str:
    """Return "gained 21%", or "no gain" if the loss on the held-out rows did not fall."""
    return f"gained {_percent(gain)}" if gain >= _SMALLEST_CHANGE else "no gain"


def _percent(part: float) -> str:
    return f"{part:.0%}" if part >= 0.01 else f"{part:.1%}"


def preference_sentences(result: EvaluationResult) -> list[str]:
    """Return sentences about the accuracy on pairs or labels with its uncertainty; none for other objectives."""
    names: dict[Branch, str] = {"base": "the base model", "second": f"its start, {result.start}"}
    if result.ratings is not None:
        return describe_ratings(result.ratings, names)
    preference = result.preference
    if preference is None or "tuned" not in preference.branches:
        return []
    flips = [describe_flips(preference, branch, names[branch]) for branch in preference.flips if branch in names]
    return [*describe_accuracy(preference, names), *flips]


def comparison_table(result: EvaluationResult) -> tuple[list[str], dict[Branch, list[str]]]:
    """Return the header of a table with all figures on held-out rows, and its cells by branch; – where there is none."""
    losses = {name: [f"{loss.loss:.4f}", f"{loss.perplexity:.2f}"] for name, loss in result.losses.items()}
    groups: list[tuple[Sequence[str], dict[Branch, list[str]]]] = [(("Loss", "Perplexity"), losses)]
    scores = {
        name: [f"{means.exact:.0%}", f"{means.rouge_l:.3f}", f"{means.chrf:.3f}"]
        for name, means in result.scores.items()
    }
    groups.append((("Exact", "ROUGE-L", "chrF"), scores))
    if (preference := result.preference) is not None:
        pairs = preference.pairs
        cells = {
            name: [f"{row.preferred / pairs:.0%}", f"{row.preferred_per_token / pairs:.0%}", f"{row.margin:.2f}"]
            for name, row in preference.branches.items()
        }
        groups.append((("Chosen likelier", "Per token", "Margin"), cells))
    if (ratings := result.ratings) is not None:
        groups.append((RATING_COLUMNS, {name: rating_cells(row, ratings) for name, row in ratings.branches.items()}))
    groups = [(columns, cells) for columns, cells in groups if cells]
    rows = {
        branch: [cell for columns, cells in groups for cell in cells.get(branch, ["–"] * len(columns))]
        for branch in result.losses
    }
    return [column for columns, _ in groups for column in columns], rows


def evaluation_file(run: Path, checkpoint: str | None, *, all_rows: bool = False) -> Path:
    """Return the file of a run's evaluation, on held-out or all rows: for the final result and for each checkpoint."""
    return run / EVALUATIONS_FOLDER / f"{checkpoint or 'final'}{'.all-rows' if all_rows else ''}.json"


@dataclass(eq=False)
class EvaluationJob:
    """One evaluation; can be stopped from another thread."""

    home: LoratoryHome
    request: EvaluationRequest
    choose: Callable[[RunSection], Device] = choose_device
    _stop_event: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, on_progress: OnProgress = lambda _: None) -> EvaluationResult:
        """Evaluate, and save the result in the run's folder for `read_evaluation`.

        Raises:
            RunError: If this is not a run, it has no adapter yet, or the checkpoint does not exist.
            DatasetError: If its data is missing, or it has no held-out rows.
            ModelError: If base and adapter cannot be loaded together.
            DeviceError: If the device is in use, or its memory too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        target = self.request.target
        machine = machine_of(self.home, target.where, target.trained_folder)
        order, file = self._order(machine.device if machine is not None else self.choose(RunSection()))
        assert order.plan.tuned is not None
        title, model = order.plan.tuned.name, order.plan.model
        access = hub_access(model, order.run.dataset, *order.run.test_datasets)
        access = access | {Access.HUB} if order.lm_eval else access
        is_held_out = objective_of(order.run).samples_answers and order.settings.source is None
        tests = [scorer for test in order.run.evaluation.tests for scorer in test.scorers]
        keys = key_environment([*tests, *(order.run.training.rewards if is_held_out else ())])
        if keys and machine is not None:
            raise RunError(f"The judge's key, {next(iter(keys))}, does not leave this machine.", "Evaluate it here.")
        job = DeviceJob(
            self.home, WORKER_MODULE, "evaluation", title, order.device, access=access, environment=keys, model=model.id,
            machine=machine,
        )  # fmt: skip
        starts = machine.wait_message if machine is not None else "Starting a process for the evaluation."
        on_progress(JobProgress(phase="starting", message=starts))
        answer = job.run(
            "evaluate",
            order.model_dump(mode="json"),
            self._stop_event,
            lambda value: on_progress(JobProgress.model_validate(value)),
            lambda present: on_progress(JobProgress(phase="starting", message=present.why_wait)),
        )
        result = EvaluationResult.model_validate(answer["result"])
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            what = f"The result could not be saved ({error.strerror})."
            raise StorageError(what, "Free some space, or check the run's folder.") from error
        if objective_of(order.run).learns_answers and (result.forgetting or 0.0) >= FORGOT:
            result = result.model_copy(update=self._find_replay(order.run, answer["replay"], file.parent, result))
        write_atomically(file, result.model_dump_json(indent=1))
        return result

    def _find_replay(
        self, run: RunConfig, texts: Sequence[str], folder: Path, result: EvaluationResult
    ) -> dict[str, Any]:
        """Return what the result says of the set of general rows, made of new texts or there already."""
        name, owner, rows = replay_name(run.model.id), self.home.owner or local_owner(), folder / "replay.jsonl"
        try:
            if texts and name not in set_names(self.home):
                lines = (f"{json.dumps({'text': text}, ensure_ascii=False)}\n".encode() for text in texts)
                write_atomically(rows, lines)
                add_set(
                    self.home, name, DatasetConfig(source=str(rows), format="text"), author=owner,
                    require_space=lambda size: require_disk_space(self.home, owner, size),
                )  # fmt: skip
            size_bytes = find_set(self.home, name).facts.copied_bytes or 0
        except EngineError as error:  # such as a full disk; the result is not lost by it
            return {"notes": (*result.notes, f"No general rows were saved. {error.what}")}
        finally:
            rows.unlink(missing_ok=True)
        return {"replay": f"{SET_PREFIX}{name}", "replay_tokens": size_bytes // _BYTES_PER_TOKEN}

    def stop(self) -> None:
        """Stop within seconds; no result is saved."""
        self._stop_event.set()

    def _order(self, device: Device) -> tuple[EvaluationOrder, Path]:
        choice = self.request.target.tuned
        if choice is None or not RunFolder(choice.folder).config.is_file():
            what = "Only a run can be evaluated, because only a run has held-out rows."
            raise RunError(what, "Choose a run.")
        if self.request.lm_eval and importlib.util.find_spec("lm_eval") is None:
            raise RunError("lm-eval is not installed here.", "`pip install lm-eval` brings it.")
        run = RunFolder(choice.folder)
        config, fingerprint = run.read_config(), read_provenance(run).dataset_fingerprint
        settings, source = self.request.settings, self.request.settings.source
        if source and source != config.dataset.source:
            values = {"source": pinned(source, self.home), "train_on": config.dataset.train_on}
            config = config.model_copy(update={"dataset": section_from_mapping(DatasetConfig, values)})
        tests = (*config.evaluation.tests, *self.request.tests)
        config = config.model_copy(update={"evaluation": EvaluationSection(tests=tests)})
        problems = lab_problems(config, self.home) if tests else []
        if problems := [problem for problem in problems if problem.field in ("evaluation.tests", "training.rewards")]:
            raise ConfigError(problems)
        file = evaluation_file(choice.folder, choice.checkpoint, all_rows=source is not None)
        order = EvaluationOrder(
            plan=self._plan(config, run), run=config, settings=settings, device=device, folder=file.parent,
            lm_eval=self.request.lm_eval, writes_replay=self._writes_replay(config), data_fingerprint=fingerprint if source is None else None,
        )  # fmt: skip
        return order, file

    def _writes_replay(self, config: RunConfig) -> bool:
        is_new = replay_name(config.model.id) not in set_names(self.home)
        return objective_of(config).learns_answers and is_new and not self.home.is_guest

    def _plan(self, config: RunConfig, run: RunFolder) -> LoadPlan:
        """Plan for base and tuned model; for a preference run also for the adapter that it started from."""
        target = self.request.target
        if objective_of(config).learns_preferences and target.second is None:
            start = start_of(config, run.path.parent, self.home if self.home.owner else None)
            if start is not None:
                with contextlib.suppress(EngineError):  # it can no longer be loaded
                    return plan_load(target.model_copy(update={"second": AdapterChoice(folder=start)}), self.home)
        return plan_load(target, self.home)


def replay_name(model_id: str) -> str:
    """Return the name of the set with the general rows that a model wrote."""
    return f"general-{re.sub(r'[^a-z0-9.]+', '-', model_id.lower())[-40:].strip('-.')}"


def read_forgetting(run: Path) -> Forgetting | None:
    """Return how much a run's result forgot, and what helps; None where it was not measured."""
    result = read_evaluation(run)
    if result is None or result.forgetting is None:
        return None
    return Forgetting(result.forgetting, result.replay, result.replay_tokens)


def read_evaluation(run: Path, checkpoint: str | None = None, *, all_rows: bool = False) -> EvaluationResult | None:
    """Return the last evaluation of a run or one of its checkpoints; None if there is none."""
    return read_model(evaluation_file(run, checkpoint, all_rows=all_rows), EvaluationResult)

"""The model card of an export: description, training, evaluation and how to load it."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
import yaml

from loratory.engine.chat.contract import Branch
from loratory.engine.chat.target import LoadPlan
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.results import ExportKind
from loratory.engine.config.run import SET_PREFIX, DatasetConfig, RunConfig
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.source import SAMPLE_PREFIX
from loratory.engine.errors import EngineError, ModelError
from loratory.engine.evaluation import job as evaluations
from loratory.engine.evaluation.samples import TestResult
from loratory.engine.evaluation.server_check import ServerCheck, read_check
from loratory.engine.export.kinds import ADAPTER, KINDS
from loratory.engine.export.vllm import read_vllm_adapter
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.folder import family_in, license_in
from loratory.engine.models.source import ModelSource
from loratory.engine.runs.history.run_history import RunHistory, read_history
from loratory.engine.runs.provenance import ADAPTER_CONFIG, Provenance, read_provenance, run_title, start_of
from loratory.engine.runs.run import RunFolder

_BRANCHES: Mapping[Branch, str] = {"base": "Base", "second": "Start", "tuned": "This"}


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about a run, for its card."""

    config: RunConfig
    history: RunHistory
    provenance: Provenance
    evaluation: evaluations.EvaluationResult | None  # None if there is none
    check: ServerCheck | None  # of a server, against this very state
    start: str  # the adapter that training started from; empty for a new one
    last_step: int | None  # the step of a checkpoint; None for the run's end


class CurvePoint(NamedTuple):
    """One row of the loss curve; NaN if it was not measured."""

    step: int
    loss: float
    held_out_loss: float


def data_names(dataset: DatasetConfig) -> tuple[str, ...]:
    """Return the datasets of a run; only the last part of a path, which reveals no folders."""
    sources = (source.strip() for source in (dataset.source, *dataset.mix))
    return tuple(
        source
        if source.startswith((SAMPLE_PREFIX, SET_PREFIX)) or is_on_hub(source)
        else PureWindowsPath(source).name or "a local dataset"  # reads both kinds of separators
        for source in sources
    )


def hub_datasets(dataset: DatasetConfig) -> tuple[str, ...]:
    """Return the ids of the datasets on the Hub, without paths of files."""
    sources = (source.strip() for source in (dataset.source, *dataset.mix))
    return tuple(source for source in sources if "/" in source and is_on_hub(source))


def loss_curve(history: RunHistory, last_step: int | None = None, points: int = 10) -> tuple[CurvePoint, ...]:
    """Return the curve up to `last_step` in a few evenly spaced rows.

    The training loss of a row is the mean since the row before it, the held-out loss the latest one.
    """
    steps, losses = history.steps.steps, history.steps.losses
    if last_step is not None:
        steps, losses = steps[steps <= last_step], losses[steps <= last_step]
    rows = []
    before = 0
    for segment in np.array_split(np.arange(len(steps)), min(len(steps), points)) if len(steps) else ():
        last = int(steps[segment[-1]])
        finite = losses[segment][np.isfinite(losses[segment])]
        held_out = [point.eval_loss for point in history.tuned_evals if before < point.step <= last]
        rows.append(
            CurvePoint(last, float(finite.mean()) if finite.size else math.nan, held_out[-1] if held_out else math.nan)
        )
        before = last
    return tuple(rows)


def write_card(
    plan: LoadPlan, kind: ExportKind, folder: str, source: ModelSource, *, run: Path | None, checkpoint: str | None
) -> str:
    """Return the README of an export with front matter for the Hub, without paths of this machine.

    Args:
        folder: The repository, or the name of the exported folder, for the example code.
        run: The run's folder; None for an adapter without a run.
    """
    assert plan.tuned is not None
    base = source.hub_id or source.name
    entry = find_in_catalog(base)
    license_ = entry.license if entry is not None else license_in(Path(source.location))
    facts = _training_facts(RunFolder(run), checkpoint) if run is not None else None
    sees = family_in(Path(source.location), source.name) is not None
    code = KINDS[kind].code_for(takes_images=sees).format(folder=folder, base=base)
    link = f"[{base}](https://huggingface.co/{base})" if source.hub_id is not None else f"`{base}`"
    terms = f"is licensed under `{license_}`" if license_ else "has a licence of its own"
    matter = yaml.safe_dump(
        _front_matter(kind, source, license_, facts, task="image-text-to-text" if sees else "text-generation"),
        sort_keys=False,
        allow_unicode=True,
    )
    parts = [
        f"---\n{matter}---\n",
        f"# {_cell(plan.tuned.name)}\n",
        f"This is {KINDS[kind].card_noun} `{base}`, trained with {plan.method_name or 'PEFT'} in Loratory.\n",
        f"## Use\n\n```python\n{code}```\n",
        "The chat template that it was trained with is part of the tokenizer.\n",
        *_vllm(plan.tuned.folder, kind, folder, source),
        *(_sections(plan.method_name, facts) if facts is not None else ()),
        f"## Licence\n\nThe base model {link} {terms}; its terms apply to models made from it.\n",
    ]
    return "\n".join(parts)


def _vllm(adapter: Path, kind: ExportKind, folder: str, source: ModelSource) -> Iterator[str]:
    if kind == ADAPTER.name and (adapter / ADAPTER_CONFIG).is_file():
        with contextlib.suppress(ModelError):  # the base is not on this machine
            adapter_facts = read_vllm_adapter(adapter, Path(source.location), source.name)
            yield adapter_facts.section(folder, source.hub_id or source.name)


def _training_facts(run: RunFolder, checkpoint: str | None) -> TrainingFacts:
    step, config = (checkpoint or "").removeprefix("step-"), run.read_config()
    return TrainingFacts(
        config=config,
        history=read_history(run.events),
        provenance=read_provenance(run),
        evaluation=evaluations.read_evaluation(run.path, checkpoint),
        check=read_check(run.path, checkpoint),
        start=_start_words(config, run.path.parent),
        last_step=int(step) if step.isdecimal() else None,
    )


def _start_words(config: RunConfig, runs: Path) -> str:
    if config.adapter.warm_start is None:
        return ""
    start = start_of(config, runs)
    with contextlib.suppress(EngineError, OSError):
        if start is not None and (folder := RunFolder(start)).config.is_file():
            return f"the adapter of {run_title(folder.read_config())}, which is part of this one"
    return "an earlier adapter, which is part of this one"


def _front_matter(
    kind: ExportKind, source: ModelSource, license_: str | None, run: TrainingFacts | None, task: str
) -> dict[str, object]:
    matter: dict[str, object] = {}
    if source.hub_id is not None:
        matter |= {"base_model": source.hub_id, "base_model_relation": KINDS[kind].relation}
    if license_ is not None:
        matter["license"] = license_
    tags = ["loratory"]
    if run is not None:
        if datasets := hub_datasets(run.config.dataset):
            matter["datasets"] = list(datasets)
        tags += [] if run.config.adapter.traits.trains_all else [run.config.adapter.method]
    return matter | {"library_name": KINDS[kind].library, "pipeline_tag": task, "tags": tags}


def _sections(method: str, run: TrainingFacts) -> Iterator[str]:
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _training_rows(method, run))
    yield f"## Training\n\n| | |\n|---|---|\n{table}\n"
    points = loss_curve(run.history, run.last_step)
    if len(points) > 1:
        rows = "\n".join(f"| {point.step:,} | {_loss(point.loss)} | {_loss(point.held_out_loss)} |" for point in points)
        table = f"| Step | Loss | Held-out loss |\n|---:|---:|---:|\n{rows}\n"
        yield f"### Loss\n\nThe loss is the mean since the row before.\n\n{table}"
    if run.evaluation is not None:
        yield from _evaluation(run.evaluation)
    if run.check is not None:
        sentences = " ".join(finding.text for finding in run.check.findings)
        yield f"## Server\n\nCompared with an OpenAI-compatible server on {run.check.time[:10]}: {sentences}\n"


def _training_rows(method: str, run: TrainingFacts) -> Iterator[tuple[str, str]]:
    config, history = run.config, run.history
    training, report = config.training, history.data_report
    yield "Data", ", ".join(data_names(config.dataset))
    if report is not None:
        images = f" with {report.images:,} images" if report.images else ""
        yield "Rows", f"{report.train_rows:,} trained on{images}, {report.eval_rows:,} held out"
    if fingerprint := run.provenance.dataset_fingerprint:
        yield "Dataset fingerprint", f"`{fingerprint[:16]}`"
    objective = objective_of(config)
    if not objective.learns_answers:
        values = {name: getattr(training, name) for name in objective.settings if name in ("beta", "label_smoothing")}
        losses = " + ".join(objective.losses_of(config))
        settings = [f"{name.replace('_', ' ')} {value:g}" for name, value in values.items() if value]
        yield "Objective", ", ".join([objective.name.upper(), *([f"loss {losses}"] if losses else []), *settings])
    else:
        yield "Trained on", config.dataset.train_on.replace("_", " ")
    yield "Method", method
    if origin := run.provenance.origin_words:
        yield "Merged from", origin
    if run.start:
        yield "Started from", run.start
    yield from config.adapter.traits.card_rows(config.adapter)
    if config.model.quantization != "none":
        yield "Base weights", config.model.quantization
    yield (
        "Length",
        f"{training.num_train_epochs:g} epochs" if training.max_steps < 0 else f"{training.max_steps:,} steps",
    )
    rate = f"{training.learning_rate:g}, {training.lr_scheduler_type}, warm-up {training.warmup_steps:g}"
    yield "Learning rate", rate
    yield "Optimizer", f"{training.optim}, weight decay {training.weight_decay:g}"
    yield "Batch", f"{training.per_device_train_batch_size * training.gradient_accumulation_steps}"
    yield "Max length", f"{training.max_length:,} tokens"
    yield "Seed", f"{training.seed}"
    if steps := run.last_step or history.last_step:
        yield "Steps", f"{steps:,}"
    evals = [point for point in history.tuned_evals if run.last_step is None or point.step <= run.last_step]
    if evals:
        last = evals[-1].eval_loss
        before = f", {history.base_eval.eval_loss:.4f} before" if history.base_eval is not None else ""
        # A loss over preferences is not a likelihood.
        likelihood = (
            f" (perplexity {evaluations.perplexity_of(last):.2f})" if objective_of(config).learns_answers else ""
        )
        if (reward := evals[-1].reward) is None:
            yield "Held-out loss", f"{last:.4f}{likelihood}{before}"
        else:
            yield "Reward on held-out prompts", f"{reward:.3f}"
        if (accuracy := evals[-1].preference_accuracy) is not None:
            yield "Held-out preference accuracy", f"{accuracy:.0%} of {evals[-1].rows:,} pairs"
    if run.provenance.libraries:
        yield "Versions", ", ".join(f"{name} {version}" for name, version in run.provenance.libraries.items())


def _evaluation(result: evaluations.EvaluationResult) -> Iterator[str]:
    """Yield tables of all figures on test sets and on held-out rows, and sentences about them."""
    if result.tests:
        yield _test_sets(result.tests)
    if not result.losses:
        return
    header, cells = evaluations.comparison_table(result)
    lines = [f"| | {' | '.join(header)} |", f"|---|{'---:|' * len(header)}"]
    lines += [f"| {_BRANCHES[branch]} | {' | '.join(row)} |" for branch, row in cells.items()]
    answer_rows = max((scores.rows for scores in result.scores.values()), default=0)
    answers = f", answers on {answer_rows:,} of them" if answer_rows else ""
    yield f"## Evaluation\n\nMeasured on {result.rows:,} held-out rows{answers}.\n\n" + "\n".join(lines) + "\n"
    # The card does not name the run that training started from.
    sentences = evaluations.preference_sentences(
        result.model_copy(update={"start": "the adapter that training started from"})
    )
    if sentences:
        yield f"{' '.join(sentences)}\n"
    if result.forgetting is not None:
        base, tuned = result.general_losses["base"], result.general_losses["tuned"]
        yield (
            f"On {tuned.tokens:,} tokens of general text its loss is {_loss(tuned.loss)}, the base model's "
            f"{_loss(base.loss)}: {evaluations.describe_forgetting(result.forgetting, result.forgetting_interval)}.\n"
        )


def _test_sets(tests: Sequence[TestResult]) -> str:
    """Return a table of what base and tuned score on prompts apart from the training rows."""
    branches = [branch for branch in _BRANCHES if any(branch in test.branches for test in tests)]
    head = ("Test set", "Prompts", "Scorers", *(_BRANCHES[branch] for branch in branches), "McNemar's p")
    lines = [f"| {' | '.join(head)} |", f"|---|---:|---|{'---:|' * (len(branches) + 1)}"]
    for test in tests:
        scores = (test.branches[branch].text if branch in test.branches else "" for branch in branches)
        count = len(next(iter(test.prompts.values())))
        cells = (_cell(test.name), f"{count:,}", _cell(", ".join(test.scorers)), *scores, test.p_words)
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"## Test sets\n\nMean scores, with the 95% interval; p is that of prompts that pass in one of both alone.\n\n{table}\n"


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def _cell(text: str) -> str:
    """Escape text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())

"""The model card of an export: what it is, how it was trained, how good it is, and how to load it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import yaml

from engine.chat.target import LoadPlan
from engine.config.results import ExportKind
from engine.config.run import DatasetConfig, RunConfig
from engine.data.hub import is_on_hub
from engine.evaluation.job import EvaluationResult, read_evaluation
from engine.export.kinds import KINDS
from engine.models.catalog import find_in_catalog
from engine.runs.history.reader import read_history
from engine.runs.history.run_history import RunHistory
from engine.runs.provenance import Provenance, read_provenance
from engine.runs.run import RunFolder

_SAMPLE_PREFIX = "sample:"
_MAX_CARD_BYTES = 1_000_000


@dataclass(frozen=True)
class CardFacts:
    """The facts of a model card."""

    kind: ExportKind
    folder: str  # what loads it: the repository, or the name of the exported folder
    title: str
    base: str  # Hub id or name of the base model
    base_is_on_hub: bool
    method: str
    config: RunConfig | None = None  # None for an adapter that comes from elsewhere
    history: RunHistory | None = None
    provenance: Provenance | None = None
    evaluation: EvaluationResult | None = None  # None where nothing was measured
    license: str | None = None  # of the base, as the Hub writes it; None where it is not known here
    last_step: int | None = None  # the step of a checkpoint; None for the run's end


class CurvePoint(NamedTuple):
    """One row of the loss curve; NaN where it was not measured."""

    step: int
    loss: float
    held_out_loss: float


def gather_facts(
    plan: LoadPlan,
    kind: ExportKind,
    folder: str,
    base: str,
    *,
    base_is_on_hub: bool,
    run: Path | None,
    checkpoint: str | None = None,
    base_folder: Path | None = None,
) -> CardFacts:
    """Collect what is known about a result; a run knows everything, a bare adapter little.

    Args:
        plan: What was loaded.
        kind: The kind of export.
        folder: The repository, or the name of the exported folder.
        base: Hub id or name of the base model.
        base_is_on_hub: Whether `base` is a Hub id.
        run: The run's folder.
        checkpoint: Which of its checkpoints.
        base_folder: Where the base lies on this machine; its card may name its licence.
    """
    assert plan.tuned is not None
    of_run = RunFolder(run) if run is not None else None
    return CardFacts(
        kind=kind,
        folder=folder,
        title=plan.tuned.name,
        base=base,
        base_is_on_hub=base_is_on_hub,
        method=plan.method_name,
        config=of_run.read_config() if of_run is not None else None,
        history=read_history(of_run.events) if of_run is not None else None,
        provenance=read_provenance(of_run) if of_run is not None else None,
        evaluation=read_evaluation(run, checkpoint) if run is not None else None,
        license=_license_of(base, base_folder),
        last_step=_step_of(checkpoint),
    )


def data_names(dataset: DatasetConfig) -> tuple[str, ...]:
    """Return the datasets of a run; of a path only the last part, which reveals no folders."""
    return tuple(_data_name(source) for source in (dataset.source, *dataset.mix))


def hub_datasets(dataset: DatasetConfig) -> tuple[str, ...]:
    """Return the ids of those on the Hub; what only looks like a file's path is not among them."""
    sources = (source.strip() for source in (dataset.source, *dataset.mix))
    return tuple(source for source in sources if "/" in source and is_on_hub(source))


def loss_curve(history: RunHistory, last_step: int | None = None, points: int = 10) -> tuple[CurvePoint, ...]:
    """Return the curve in a few rows, evenly spread, with the held-out loss that was measured last at each of them.

    Args:
        history: Of the run.
        last_step: Where the curve ends; None takes all of it.
        points: Rows at most.

    Returns:
        The training loss of a row is the mean over the logged steps since the row before it.
    """
    steps, losses = history.steps.steps, history.steps.losses
    if last_step is not None:
        losses = losses[steps <= last_step]
        steps = steps[steps <= last_step]
    if not len(steps):
        return ()
    rows = []
    bounds = _spread(len(steps), points)
    start = 0
    for bound in bounds:
        piece = [float(loss) for loss in losses[start : bound + 1] if math.isfinite(loss)]
        first, last = float(steps[start - 1]) if start else 0.0, float(steps[bound])
        held_out = [point.eval_loss for point in history.tuned_evals if first < point.step <= last]
        rows.append(
            CurvePoint(
                int(last),
                sum(piece) / len(piece) if piece else math.nan,
                held_out[-1] if held_out else math.nan,
            )
        )
        start = bound + 1
    return tuple(rows)


def _spread(count: int, points: int) -> Sequence[int]:
    """Return positions of the last element of each of so many equal stretches of `count` elements."""
    wanted = min(count, points)
    return [round((part + 1) * count / wanted) - 1 for part in range(wanted)]


def _step_of(checkpoint: str | None) -> int | None:
    number = (checkpoint or "").removeprefix("step-")
    return int(number) if number.isdecimal() else None


def _data_name(source: str) -> str:
    text = source.strip()
    if text.startswith(_SAMPLE_PREFIX):
        return text
    if is_on_hub(text):
        return text
    return PureWindowsPath(text).name or "a local dataset"  # reads both kinds of separators


def _license_of(base: str, folder: Path | None) -> str | None:
    """Return the licence by the catalogue, else by the front matter of the base's own card."""
    entry = find_in_catalog(base)
    if entry is not None:
        return entry.license
    card = folder / "README.md" if folder is not None else None
    try:
        if card is None or not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
            return None
        _, opening, rest = card.read_text(encoding="utf-8").partition("---\n")
        matter = yaml.safe_load(rest.partition("\n---")[0]) if opening else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = matter.get("license") if isinstance(matter, dict) else None
    return named if isinstance(named, str) and named.isprintable() and len(named) < 60 else None


_LONGEST_LOSS = 700.0  # beyond it e to the power overflows


def write_card(facts: CardFacts) -> str:
    """Return the README, with the front matter that the Hub reads. Names no path of this machine."""
    kind = KINDS[facts.kind]
    code = kind.code.format(folder=facts.folder, base=facts.base)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---\n",
        f"# {_cell(facts.title)}\n",
        f"This is {kind.card_noun} `{facts.base}`, trained with {facts.method or 'PEFT'} in Loratory.\n",
        f"## Use\n\n```python\n{code}```\n",
        "The chat template that it was trained with is part of the tokenizer.\n",
        *(_training(facts.config, facts) if facts.config is not None else ()),
        *(_curve(facts.history, facts.last_step) if facts.history is not None else ()),
        *(_evaluation(facts.evaluation) if facts.evaluation is not None else ()),
        _license(facts),
    ]
    return "\n".join(parts)


def _front_matter(facts: CardFacts) -> dict[str, object]:
    matter: dict[str, object] = {}
    if facts.base_is_on_hub:
        matter["base_model"] = facts.base
        matter["base_model_relation"] = KINDS[facts.kind].relation
    if facts.license is not None:
        matter["license"] = facts.license
    datasets = hub_datasets(facts.config.dataset) if facts.config is not None else ()
    if datasets:
        matter["datasets"] = list(datasets)
    matter["library_name"] = KINDS[facts.kind].library
    matter["pipeline_tag"] = "text-generation"
    adapter = facts.config.adapter if facts.config is not None else None
    method = [adapter.method] if adapter is not None and not adapter.traits.trains_all else []
    matter["tags"] = ["loratory", *method]
    return matter


def _training(config: RunConfig, facts: CardFacts) -> tuple[str, ...]:
    training = config.training
    quantization = config.model.quantization
    length = f"{training.num_train_epochs:g} epochs" if training.max_steps < 0 else f"{training.max_steps:,} steps"
    rows = [
        ("Data", ", ".join(data_names(config.dataset))),
        *_data_rows(facts),
        ("Trained on", config.dataset.train_on.replace("_", " ")),
        ("Method", facts.method),
        *config.adapter.traits.card_rows(config.adapter),
        *([("Base weights", quantization)] if quantization != "none" else []),
        ("Length", length),
        (
            "Learning rate",
            f"{training.learning_rate:g}, {training.lr_scheduler_type}, warm-up {training.warmup_steps:g}",
        ),
        ("Optimizer", f"{training.optim}, weight decay {training.weight_decay:g}"),
        ("Batch", f"{training.per_device_train_batch_size * training.gradient_accumulation_steps}"),
        ("Max length", f"{training.max_length:,} tokens"),
        ("Seed", f"{training.seed}"),
        *_result_rows(facts.history, facts.last_step),
    ]
    versions = facts.provenance.libraries if facts.provenance is not None else {}
    if versions:
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    return (f"## Training\n\n| | |\n|---|---|\n{table}\n",)


def _data_rows(facts: CardFacts) -> list[tuple[str, str]]:
    report = facts.history.data_report if facts.history is not None else None
    rows = []
    if report is not None:
        rows.append(("Rows", f"{report.train_rows:,} trained on, {report.eval_rows:,} held out"))
    fingerprint = facts.provenance.dataset_fingerprint if facts.provenance is not None else None
    if fingerprint:
        rows.append(("Dataset fingerprint", f"`{fingerprint[:16]}`"))
    return rows


def _result_rows(history: RunHistory | None, last_step: int | None) -> list[tuple[str, str]]:
    if history is None:
        return []
    steps = last_step or history.last_step
    rows = [("Steps", f"{steps:,}")] if steps else []
    measured = [point for point in history.tuned_evals if last_step is None or point.step <= last_step]
    if measured:
        last = measured[-1].eval_loss
        before = f", {history.base_eval.eval_loss:.4f} before" if history.base_eval is not None else ""
        perplexity = math.exp(min(last, _LONGEST_LOSS))
        rows.append(("Held-out loss", f"{last:.4f} (perplexity {perplexity:.2f}){before}"))
    return rows


def _curve(history: RunHistory, last_step: int | None) -> tuple[str, ...]:
    points = loss_curve(history, last_step)
    if len(points) < 2:
        return ()
    rows = "\n".join(f"| {point.step:,} | {_loss(point.loss)} | {_loss(point.held_out_loss)} |" for point in points)
    table = f"| Step | Loss | Held-out loss |\n|---:|---:|---:|\n{rows}\n"
    return (f"### Loss\n\nThe loss is the mean since the row before.\n\n{table}",)


def _evaluation(result: EvaluationResult) -> tuple[str, ...]:
    """Losses and, where answers were written, their scores; base and tuned on the same rows."""
    branches = [branch for branch in ("base", "tuned") if branch in result.losses]
    if not branches:
        return ()
    scored = any(branch in result.scores for branch in branches)
    header = "| | Loss | Perplexity |" + (" Exact | ROUGE-L | chrF |" if scored else "")
    lines = [header, "|---|---:|---:|" + ("---:|---:|---:|" if scored else "")]
    for branch in branches:
        loss = result.losses[branch]
        line = f"| {'Base' if branch == 'base' else 'This'} | {_loss(loss.loss)} | {loss.perplexity:.2f} |"
        scores = result.scores.get(branch)
        if scores is not None:
            line += f" {scores.exact:.0%} | {scores.rouge_l:.3f} | {scores.chrf:.3f} |"
        elif scored:
            line += " | | |"
        lines.append(line)
    answered = max((scores.rows for scores in result.scores.values()), default=0)
    on = f"Measured on {result.rows:,} held-out rows" + (f", answers on {answered:,} of them." if answered else ".")
    return (f"## Evaluation\n\n{on}\n\n" + "\n".join(lines) + "\n",)


def _license(facts: CardFacts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_is_on_hub else f"`{facts.base}`"
    known = f"is licensed under `{facts.license}`" if facts.license else "has a licence of its own"
    return f"## Licence\n\nThe base model {base} {known}; its terms hold for what is made from it.\n"


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def _cell(text: str) -> str:
    """Return text that stays within its cell of a table."""
    return " ".join(text.replace("|", "\\|").split())

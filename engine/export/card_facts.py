"""The facts of a model card, gathered from the files of the run and of the base model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import yaml

from engine.chat.target import LoadPlan
from engine.config.dataset import DatasetConfig
from engine.config.export import ExportKind
from engine.config.run import RunConfig
from engine.data.hub import is_on_hub
from engine.evaluation.contract import EvaluationResult
from engine.evaluation.job import read_evaluation
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
    """The curve in a few rows, evenly spread, with the held-out loss that was measured last at each of them.

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
    """Positions of the last element of each of so many equal stretches of `count` elements."""
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
    """The licence by the catalogue, else by the front matter of the base's own card."""
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

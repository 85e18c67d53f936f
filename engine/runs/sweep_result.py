"""What a sweep found: the held-out loss of each combination over its seeds, and whether the best is more than noise."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loratory.engine.runs.run import FINAL_STATES
from loratory.engine.runs.summary import RunSummary

_SEED = "training.seed"
# 97.5% quantiles of Student's t for 1, 2, … degrees of freedom; more: Abramowitz and Stegun, 26.7.5.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Interval:
    """A mean, and half of its 95% interval by Student's t; None for a single value."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.half_width is None else f" ± {self.half_width:.3f}")


@dataclass(frozen=True)
class Combination:
    """Runs of a sweep that differ in their seed alone."""

    values: dict[str, str]  # by setting, and the same for people
    label: str
    run_ids: tuple[str, ...]
    losses: dict[str, float]  # held out, by seed, of the runs that completed
    loss: Interval | None


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep, also while some of its runs are open."""

    id: str
    conclusion: str
    best: Combination | None
    combinations: tuple[Combination, ...]  # in the order of the runs


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of a sample with its interval."""
    mean, degrees = statistics.fmean(values), len(values) - 1
    if not degrees:
        return Interval(mean, None)
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.372 / degrees + 2.823 / degrees**2
    return Interval(mean, t * statistics.stdev(values) / math.sqrt(len(values)))


def sweep_result(summaries: Iterable[RunSummary], sweep: str) -> SweepResult | None:
    """Return the result of the sweep with this id; None where none of the runs, newest first, is part of it."""
    rows = [row for row in summaries if row.sweep == sweep != ""][::-1]
    members: dict[tuple[tuple[str, str], ...], list[RunSummary]] = {}
    for row in rows:
        members.setdefault(tuple(item for item in row.swept.items() if item[0] != _SEED), []).append(row)
    combinations = tuple(_combination(dict(values), runs) for values, runs in members.items())
    ended = [row for row in rows if row.state in FINAL_STATES]
    best, conclusion = _conclude(rows, combinations)
    conclusion += f" {len(ended)} of {len(rows)} runs ended."
    if failures := "; ".join(f"{row.name} ({row.state})" for row in ended if row.state != "completed"):
        conclusion += f" Not completed: {failures}."
    return SweepResult(sweep, conclusion, best, combinations) if rows else None


def _combination(values: dict[str, str], runs: Sequence[RunSummary]) -> Combination:
    losses = {run.swept.get(_SEED, ""): run.best_eval_loss for run in runs if run.state == "completed"}
    measured = {seed: loss for seed, loss in losses.items() if loss is not None}
    label = ", ".join(f"{name.rpartition('.')[2].replace('_', ' ')} {value}" for name, value in values.items())
    loss = mean_interval(list(measured.values())) if measured else None
    return Combination(values, label or "all runs", tuple(run.id for run in runs), measured, loss)


def _conclude(rows: Sequence[RunSummary], combinations: Sequence[Combination]) -> tuple[Combination | None, str]:
    """Return the best of the combinations with the most seeds, and a sentence."""
    # A seed also draws the held-out rows, so losses are compared seed by seed.
    if len({(row.swept.get(_SEED), row.loss_group) for row in rows}) > len({row.swept.get(_SEED) for row in rows}):
        return None, "The held-out losses are not comparable: objective, model or held-out rows differ."
    seeds = max((set(combination.losses) for combination in combinations), key=len, default=set())
    candidates = [combination for combination in combinations if seeds and set(combination.losses) == seeds]
    if not candidates:
        return None, "No completed run has a held-out loss yet."
    best, *others = sorted(candidates, key=lambda combination: sum(combination.losses.values()))
    sentence = (
        f"Best: {best.label}: held-out loss {best.loss}{f' ({len(seeds)} seeds, 95%)' if len(seeds) > 1 else ''}."
    )
    if not others:
        return best, sentence
    difference = mean_interval([others[0].losses[seed] - loss for seed, loss in best.losses.items()])
    verdict = "several seeds would show whether that is noise"
    if difference.half_width is not None:
        verdict = f"seed by seed, {'more than' if difference.mean > difference.half_width else 'within'} noise"
    return best, f"{sentence} Second: {others[0].label}, {difference} higher; {verdict}."

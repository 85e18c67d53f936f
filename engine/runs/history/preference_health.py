"""Diagnose preference runs from the worker's metrics, for the page and the commands."""

import math
from dataclasses import dataclass

import numpy as np

from loratory.engine.config.objectives import LONGER_PREFERRED, OBJECTIVES, Objective
from loratory.engine.config.training import TrainingConfig
from loratory.engine.runs.history.events import EvalData
from loratory.engine.runs.history.run_history import RunHistory

CHOSEN, REJECTED, MARGINS = "rewards/chosen", "rewards/rejected", "rewards/margins"
_FEWEST_STEPS = 10  # logged steps before a finding
_WINDOW = 0.2  # share of the logged steps whose mean is the beginning, or the present
_LESS_LIKELY = 2.0  # nats: a seventh as likely as before
_HARDLY = 0.05  # nats of margin
_FEWEST_PAIRS = 20  # held out, before shares of them mean something
_LONGER = 0.15  # by which a share may exceed that of the data
_FELL = 0.05  # of the accuracy


@dataclass(frozen=True)
class Finding:
    """A problem: its name, the evidence, and what helps."""

    name: str
    fact: str
    fix: str

    @property
    def text(self) -> str:
        return f"{self.name}: {self.fact} {self.fix}".strip()


def preference_findings(history: RunHistory, training: TrainingConfig) -> tuple[Finding, ...]:
    """Return the problems of a preference run, the worst first; none for other runs or before there is enough data."""
    objective = OBJECTIVES[training.objective]
    if not objective.learns_preferences:
        return ()
    if len(history.steps) < _FEWEST_STEPS or not math.isfinite(history.steps.losses[-1]):
        return ()
    findings = [_overfitting(history), _longer_answers(history, objective)]
    if objective.has_reference:
        falling = _falling_together(history, training, objective)
        findings = [falling, *findings, _nothing_learned(history, training)]
    return tuple(finding for finding in findings if finding is not None)


def _falling_together(history: RunHistory, training: TrainingConfig, objective: Objective) -> Finding | None:
    """Find a likelihood of chosen answers that falls with that of rejected ones.

    Source: Pal et al. 2024, arXiv:2402.13228; Razin et al. 2024, arXiv:2410.08847.
    """
    chosen, rejected = (now(history, name) for name in (CHOSEN, REJECTED))
    if chosen is None or rejected is None:
        return None
    ratio = chosen / training.beta
    if ratio > -_LESS_LIKELY or rejected / training.beta > -_LESS_LIKELY:
        return None
    better, worse = objective.row_traits.better, objective.row_traits.worse
    helps = ["lower the learning rate", "raise beta"]
    if objective.adds_losses and "sft" not in training.loss_type:
        helps.insert(0, "add sft to loss_type")
    times = f"{math.exp(-ratio):,.0f}" if ratio > -10 else "over 20,000"
    return Finding(
        f"The {better} answers become unlikely together with the {worse} ones",
        f"Their rewards are {chosen:.2f} and {rejected:.2f}: {better} answers are {times} times less likely than at the start.",
        f"{', '.join(helps[:-1])} or {helps[-1]}.".capitalize(),
    )


def _overfitting(history: RunHistory) -> Finding | None:
    evals = [(point, accuracy) for point in history.tuned_evals if (accuracy := point.preference_accuracy) is not None]
    growth = change(history, MARGINS)
    if len(evals) < 2 or growth is None or growth <= 0:
        return None
    best, best_accuracy = max(evals, key=lambda measurement: measurement[1])
    newest, accuracy = evals[-1]
    if best_accuracy - accuracy < max(_FELL, 2 / max(1, newest.rows)) or newest.rows < _FEWEST_PAIRS:
        return None
    return Finding(
        "Overfitting",
        f"The margin still grows, but only {accuracy:.0%} of the held-out pairs are preferred correctly; at step {best.step:,} it "
        f"was {best_accuracy:.0%}.",
        "Train fewer epochs, raise beta, or lower the learning rate.",
    )


def _longer_answers(history: RunHistory, objective: Objective) -> Finding | None:
    """Find a preference for longer answers beyond their share among the better ones.

    Source: Park et al. 2024, "Disentangling length from quality in direct preference optimization", arXiv:2403.19159.
    """
    better = history.data_report.chosen_longer if history.data_report is not None else None
    point = _newest(history, LONGER_PREFERRED)
    if better is None or point is None or point.step == 0 or point.rows < _FEWEST_PAIRS:
        return None
    share = point.metrics[LONGER_PREFERRED]
    if share < better + _LONGER:
        return None
    fix = "Balance the lengths in the data"
    if "sigmoid_norm" in objective.losses:
        fix += ", or set loss_type to sigmoid_norm, which counts each token once"
    return Finding(
        "Answers grow longer",
        f"The longer answer is preferred in {share:.0%} of the held-out pairs, but is the better one in {better:.0%}.",
        f"{fix}.",
    )


def _nothing_learned(history: RunHistory, training: TrainingConfig) -> Finding | None:
    margin, total = now(history, MARGINS), history.total_steps
    if margin is None or not total or history.last_step < total / 2 or abs(margin) / training.beta > _HARDLY:
        return None
    return Finding(
        "Nothing is learned",
        f"After {history.last_step:,} of {total:,} steps the margin is {margin:.3f}.",
        "Raise the learning rate, or train for more steps.",
    )


def now(history: RunHistory, name: str) -> float | None:
    """Return the current value of a metric: on held-out rows if measured recently, else its mean over the newest steps."""
    point = _newest(history, name)
    if point is not None and point.step > 0:
        return point.metrics[name]
    _, values = history.steps.metric(name)
    return float(values[-_window(len(values)) :].mean()) if len(values) >= _FEWEST_STEPS else None


def change(history: RunHistory, name: str) -> float | None:
    """Return the recent change of a training metric: from the middle of the run to its newest steps."""
    _, values = history.steps.metric(name)
    if len(values) < _FEWEST_STEPS:
        return None
    window, middle = _window(len(values)), len(values) // 2
    return float(np.mean(values[-window:]) - np.mean(values[max(0, middle - window) : middle]))


def _window(count: int) -> int:
    return max(3, round(_WINDOW * count))


def _newest(history: RunHistory, name: str) -> EvalData | None:
    points = (point for point in reversed(history.evals) if math.isfinite(point.metrics.get(name, math.nan)))
    return next(points, None)

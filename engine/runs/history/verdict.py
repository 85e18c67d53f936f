"""Judge a run from its curves: one verdict with its reason and what helps.

Each threshold is wider than the noise of a run that learns normally. A rule that has too few points gives no verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from loratory.engine.config.derived_defaults import usual_learning_rate
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.rules import keeps_best
from loratory.engine.config.run import RunConfig
from loratory.engine.runs.history.preference_health import Finding
from loratory.engine.runs.history.reward_health import health_findings
from loratory.engine.runs.history.run_history import RunHistory

_WINDOWS = 10  # of the training loss, of two logged steps at least; their medians ignore outliers
_ERRORS = 4.0  # standard errors between two medians: by chance once in thousands of runs
_LOST = 0.5  # of what the loss had won; after a spike, a run recovers
_SAME_ROWS = 0.02  # of the held-out loss, whose rows are always the same: between two measurements it varies by less
_BARELY = 0.01  # of a loss: a smaller change is not a result
_STEADY = 3.0  # factor between the first and last gradients; that of a run that has learned shrinks
_STILL_FALLING = 0.01  # of the held-out loss for each tenth of the steps: a decaying learning rate flattens the end
FORGOT = 0.05  # of the loss on general text; less is usual after fine-tuning
_REPLAY_SHARE = 0.1  # general tokens for each trained one
_MOST_REPLAY = 4.0  # times that each general row is read: with more, they are learned by heart


@dataclass(frozen=True)
class Verdict(Finding):
    """A finding on the whole run; without a fix, all is well."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # the one to train again with, by its full name
    step: int | None = None  # of the checkpoint to use


class Forgetting(NamedTuple):
    """What an evaluation says about the loss on general text, which no run trains on."""

    rise: float  # relative increase from base to tuned
    replay: str = ""  # a set of general rows that the base model wrote; empty where it wrote none
    replay_tokens: int = 0  # about


Points = Sequence[tuple[int, float]]  # steps and held-out losses


def judge(history: RunHistory, config: RunConfig, forgetting: Forgetting | None = None) -> Verdict | None:
    """Return the most severe verdict; None while nothing is certain, or where findings of a preference run name the problem."""
    losses, failed, status = history.steps.losses, history.failed, history.status
    if len(losses) and (not math.isfinite(losses[-1]) or (failed is not None and failed.cause == "diverged")):
        fact = f"The loss was {losses[0]:.2f} at the beginning and {losses[-1]:.2f} at step {history.last_step:,}."
        return _lower_rate(config, "Diverged", fact)
    if len(losses) < 2 * _WINDOWS or health_findings(history, config.training):
        return None
    medians = [float(np.median(part)) for part in (losses[:3], *np.array_split(losses, _WINDOWS))]
    evals = {point.step: point.eval_loss for point in history.evals if math.isfinite(point.eval_loss)}
    points = sorted(evals.items())  # that before training first
    if objective_of(config).samples_answers:
        return _reward_result(history) if status and status.phase == "finished" else None
    if objective_of(config).learns_answers and (problem := _problem(history, config, medians, points)):
        return problem
    return _result(history, config, medians, points, forgetting) if status and status.phase == "finished" else None


def _lower_rate(config: RunConfig, name: str, fact: str) -> Verdict:
    rate = min(config.training.learning_rate / 3, usual_learning_rate(config))
    return Verdict(name, fact, "Lower the learning rate.", {"training.learning_rate": float(f"{rate:.1g}")})


def _problem(history: RunHistory, config: RunConfig, medians: Sequence[float], points: Points) -> Verdict | None:
    """Find a loss that lost what it had won, or held-out losses that rise while the training loss falls.

    Clipped gradients are not a sign: those of small models often exceed 1.0.
    """
    losses, lowest, end = history.steps.losses, min(medians), min(medians[-2:])  # a spike is not the end
    # Between neighbours, so a trend is not noise. 1.48 turns a median into a standard deviation, 1.25 that into a median's.
    noise = 1.25 * 1.48 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)
    margin = _ERRORS * noise * math.sqrt(2 / min(3, len(losses) // _WINDOWS))
    if end - lowest > max(margin, _BARELY * lowest, _LOST * (medians[0] - lowest)):
        return _lower_rate(config, "Learning rate too high", f"The training loss rose from {lowest:.2f} to {end:.2f}.")
    best, lowest = min(points, key=lambda point: point[1], default=(0, 0.0))
    after = [loss for step, loss in points if step > best]
    then = medians[1 + int(np.searchsorted(history.steps.steps, best, side="right") * (_WINDOWS - 1) / len(losses))]
    if len(after) < 2 or min(after[-2:]) < lowest * (1 + _SAME_ROWS):
        return None
    name, fact = f"Overfits since step {best:,}", f"The held-out loss rose from {lowest:.2f} to {after[-1]:.2f}."
    if not best:  # a spike before the first logged step, or every step made it worse
        return _lower_rate(config, "Learning rate too high", fact)
    if end >= then:
        return None
    fact = f"{fact[:-1]}; the training loss fell to {end:.2f}."
    if keeps_best(config.training):
        return Verdict(name, f"{fact} The result has the weights of step {best:,}.", "")
    if best in [saved.step for saved in history.checkpoints[-config.training.save_total_limit :]]:
        return Verdict(name, fact, "Use that checkpoint.", step=best)
    return Verdict(name, fact, "Train again and keep the best.", {"training.load_best_model_at_end": True})


def _result(
    history: RunHistory, config: RunConfig, medians: Sequence[float], points: Points, forgetting: Forgetting | None
) -> Verdict:
    """Judge a run that has finished by what it reached."""
    tuned = [point for point in points if point[0]]
    name, values = ("held-out loss", [loss for _, loss in points]) if tuned else ("training loss", medians)
    fact = f"The {name} went from {values[0]:.2f} to {min(values[1:] or values):.2f}."
    if min(values[1:] or values) > values[0] * (1 - _BARELY):
        start, end = (float(np.median(part)) for part in np.array_split(history.steps.column("grad_norm"), 4)[::3])
        if medians[-1] < medians[0] * (1 - _BARELY) or not start / _STEADY < end < start * _STEADY:
            return Verdict(f"The {name} did not fall", fact, "Check that the held-out rows resemble the others.")
        rate = max(3 * config.training.learning_rate, usual_learning_rate(config))
        fact = f"{fact} The gradient did not shrink."
        return Verdict("Learning rate too low", fact, "Raise it.", {"training.learning_rate": float(f"{rate:.1g}")})
    if forgetting is not None and forgetting.rise >= FORGOT:
        mix = _with_replay(history, config, forgetting)
        fix = "Train again with general rows mixed in." if mix else "Train fewer epochs, or mix in general data."
        return Verdict(f"Forgot {forgetting.rise:.0%}", f"{fact} That on general text rose.", fix, mix)
    return _other_length(history, config, tuned) or Verdict("Learned well" if tuned else "Learned", fact, "")


def _with_replay(history: RunHistory, config: RunConfig, forgetting: Forgetting) -> dict[str, Any]:
    """Return the mixture with general rows: at first a share of the trained tokens, then twice as many each time."""
    report, name = history.data_report, forgetting.replay
    if not name or report is None:
        return {}
    others = {source: weight for source, weight in config.dataset.mix.items() if source.partition("@")[0] != name}
    before = sum(weight for source, weight in config.dataset.mix.items() if source not in others)
    first = _REPLAY_SHARE * report.trained_tokens / max(1, forgetting.replay_tokens)
    weight = min(_MOST_REPLAY, 2 * before or max(0.05, first))
    return {"dataset.mix": {**others, name: float(f"{weight:.2g}")}} if weight > before else {}


def _reward_result(history: RunHistory) -> Verdict | None:
    rewards = [point.reward for point in history.evals if point.reward is not None]
    if len(rewards) < 2:
        return None
    fact = f"The reward on held-out prompts went from {rewards[0]:.2f} to {rewards[-1]:.2f}."
    if rewards[-1] - rewards[0] > _BARELY:
        return Verdict("Learned well", fact, "")
    return Verdict("The held-out reward did not rise", fact, "Try the reward, and read the answers.")


def _other_length(history: RunHistory, config: RunConfig, tuned: Points) -> Verdict | None:
    """Find a held-out loss that still falls at the end, or one that hardly fell after the first epoch."""
    epochs, total = config.training.num_train_epochs, history.total_steps or 0
    if len(tuned) < 3 or not 0 < total <= history.last_step or config.training.max_steps > 0:
        return None
    last, loss = tuned[-1]
    before, earlier = [point for point in tuned if point[0] <= max(0.8 * last, tuned[0][0])][-1]
    pace = (earlier - loss) * 0.1 * total / (last - before)
    if pace >= _STILL_FALLING * loss > 0:
        fact = f"The held-out loss still fell by {pace / loss:.1%} for each tenth of the steps, to {loss:.2f}."
        return Verdict("Not converged", fact, "Train longer.", {"training.num_train_epochs": epochs + 1})
    first = next((value for step, value in tuned if 0.9 <= step * epochs / total <= 1.1), math.inf)
    if epochs < 2 or min(value for _, value in tuned) < first * (1 - _BARELY):
        return None
    fact = f"The held-out loss was {first:.2f} after the first epoch and {loss:.2f} at the end."
    return Verdict("One epoch is enough", fact, "Train one epoch.", {"training.num_train_epochs": 1})

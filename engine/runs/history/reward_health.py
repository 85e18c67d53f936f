"""Diagnose runs that learn from rewards, from the worker's metrics, for the page and the commands."""

import math
from collections.abc import Iterator
from functools import partial

from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.config.training import TrainingConfig
from loratory.engine.runs.history.preference_health import Finding, preference_findings
from loratory.engine.runs.history.run_history import RunHistory

_FEWEST_STEPS = 5  # logged steps before a finding: each has many answers
_WINDOW = 0.2  # share of the logged steps whose mean is the beginning, or the present
_TIED = 0.8  # of the groups
_CUT = 0.5  # of the answers
_ERRORS = 0.02  # of the verdicts
_ROSE, _FELL, _FLAT = 0.1, 0.05, 0.02  # of the highest reward
_COLLAPSED = 0.25  # of the entropy at the beginning
_LEARNED = 0.9  # of the highest reward
_DRIFT = 2.0  # times the length at the beginning


def health_findings(history: RunHistory, training: TrainingConfig) -> tuple[Finding, ...]:
    """Return the problems of a run that learns preferences or rewards, the worst first."""
    if not OBJECTIVES[training.objective].samples_answers:
        return preference_findings(history, training)
    if len(history.steps) < _FEWEST_STEPS:
        return ()
    # A task that is learned has tied groups, little entropy and answers of its own length.
    is_learned = (_now(history, "reward") or 0.0) >= _LEARNED * _highest(training)
    was_open = (_first(history, "reward") or 0.0) < _LEARNED * _highest(training)
    always = (_failing_scorer, _hacking)
    rest = (_tied_groups, _cut_answers, _format_only, _entropy_collapse, _length_drift)
    findings = always if is_learned and was_open else (*always, *rest)
    return tuple(finding for find in findings for finding in find(history, training))


def _failing_scorer(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:
    answers = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.num_generations
    share = (_now(history, "scorer_errors") or 0.0) / (answers * max(1, len(training.rewards)))
    if share > _ERRORS:
        reasons = (reason for rollout in history.rollouts for sample in rollout.samples for reason in sample.reasons)
        reason = next(filter(None, reasons), "")
        fact = f"{share:.0%} of the verdicts are missing{f': {reason}' if reason else '.'}"
        yield Finding("A scorer fails", fact, "Correct it: answers without a reward are left out.")


def _tied_groups(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:
    tied, reward = _now(history, "frac_reward_zero_std"), _now(history, "reward")
    if tied is None or reward is None or tied < _TIED:
        return
    fact = f"In {tied:.0%} of the groups all answers earn the same, {reward:.2f} on average, so nothing is learned from them."
    fix = (
        "Choose harder prompts."
        if reward > _LEARNED * _highest(training)
        else "Choose easier prompts, or give partial credit."
    )
    yield Finding("Tied groups", fact, fix)


def _cut_answers(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:
    cut = _now(history, "completions/clipped_ratio")
    if cut is not None and cut > _CUT:
        fact = f"{cut:.0%} of the answers are cut at {training.max_completion_length:,} tokens."
        yield Finding("Cut answers", fact, "Raise max_completion_length, or ask for short answers in the prompt.")


def _hacking(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:
    """Find a reward that rises in training and falls on held-out prompts."""
    before, reward = _first(history, "reward"), _now(history, "reward")
    held_out = [(point.step, point.reward) for point in history.tuned_evals if point.reward is not None]
    if before is None or reward is None or len(held_out) < 3 or reward - before < _ROSE * _highest(training):
        return
    best_step, best = max(held_out, key=lambda point: point[1])
    last = held_out[-1][1]
    if best - last > _FELL * _highest(training) and min(value for _, value in held_out[-2:]) == last:
        fact = f"The reward rose from {before:.2f} to {reward:.2f}, but on held-out prompts it fell from {best:.2f} at step {best_step:,} to {last:.2f}."
        yield Finding(
            "The reward is hacked, or prompts are memorized", fact, "Read the answers; keep the best checkpoint."
        )


def _format_only(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:
    """Find one scorer that rises while another, that has room, does not."""
    moves = [
        (name, first, last)
        for name in reward_names(training)
        if (first := _first(history, f"rewards/{name}/mean")) is not None
        and (last := _now(history, f"rewards/{name}/mean")) is not None
    ]
    flat = [move for move in moves if move[2] - move[1] < _FLAT and move[2] < 0.9]
    risen = [move for move in moves if move[2] - move[1] > _ROSE]
    if flat and risen:
        (up, before, after), (other, _, stays) = risen[0], flat[0]
        fact = f"{up} rose from {before:.2f} to {after:.2f}, while {other} stays at {stays:.2f}."
        yield Finding("One reward alone is learned", fact, "Lower the weight of the easy one, once it is learned.")


def _entropy_collapse(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:  # noqa: ARG001
    before, entropy = _first(history, "entropy"), _now(history, "entropy")
    if before and entropy is not None and entropy < _COLLAPSED * before:
        fact = f"The entropy of the answers fell from {before:.2f} to {entropy:.2f} nats: they become the same."
        yield Finding("Entropy collapse", fact, "Lower the learning rate, or raise epsilon_high or beta.")


def _length_drift(history: RunHistory, training: TrainingConfig) -> Iterator[Finding]:  # noqa: ARG001
    before, length = _first(history, "completions/mean_length"), _now(history, "completions/mean_length")
    if before and length and max(length / before, before / length) > _DRIFT:
        grow = "grow" if length > before else "shrink"
        fact = f"Answers had {before:.0f} tokens at the beginning and have {length:.0f} now."
        yield Finding(f"Answers {grow}", fact, "Read them: length may earn a reward of its own.")


def reward_names(training: TrainingConfig) -> list[str]:
    """Return the names of the scorers in metrics; of several of one kind, the later ones have a number."""
    names: list[str] = []
    for scorer in training.rewards:
        count = sum(name.partition("#")[0] == scorer.scorer for name in names)
        names.append(f"{scorer.scorer}#{count + 1}" if count else scorer.scorer)
    return names


def _highest(training: TrainingConfig) -> float:
    return sum(max(0.0, scorer.weight) for scorer in training.rewards) or 1.0


def _mean(history: RunHistory, name: str, *, newest: bool) -> float | None:
    """Return the mean of a metric over the newest or the first logged steps."""
    _, values = history.steps.metric(name)
    window = max(2, round(_WINDOW * len(values)))
    part = values[-window:] if newest else values[:window]
    mean = float(part.mean()) if len(values) >= _FEWEST_STEPS else math.nan
    return mean if math.isfinite(mean) else None


_now, _first = partial(_mean, newest=True), partial(_mean, newest=False)

"""How long a run will still take, from the pace of its newest steps."""

import time
from collections.abc import Callable

from engine.runs.history import RunHistory

_LOOKED_AT_STEPS = 200


def seconds_per_step(history: RunHistory) -> float | None:
    """Wall-clock seconds of a step lately, evaluations and saves spread over the steps; None before the second one."""
    steps, times = history.steps.column("step")[-_LOOKED_AT_STEPS:], history.steps.column("time")[-_LOOKED_AT_STEPS:]
    if len(steps) < 2 or steps[-1] <= steps[0] or times[-1] <= times[0]:
        return None
    return float((times[-1] - times[0]) / (steps[-1] - steps[0]))


def seconds_left(history: RunHistory, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds until the last step; None while nobody can know.

    Args:
        history: Of a run that trains.
        clock: Seconds since the epoch; what has passed since the newest step counts.
    """
    pace = seconds_per_step(history)
    newest = history.steps.last("time")
    if pace is None or newest is None or not history.total_steps:
        return None
    remaining = max(history.total_steps - history.last_step, 0)
    return max(remaining * pace - min(max(clock() - newest, 0.0), pace), 0.0)

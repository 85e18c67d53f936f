"""What a run said besides its steps: measurements, checkpoints, words. Small, however long the run is."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.runs.history.events import (
    CheckpointData,
    DataReportData,
    EvalData,
    FailedData,
    MemoryData,
    ParametersData,
    StatusData,
)
from engine.runs.history.steps import StepSeries

_REMEMBERED_MESSAGES = 1000


class Message(NamedTuple):
    """Something that was said in words."""

    time: float
    kind: Literal["status", "warning", "failed", "resumed"]
    text: str


class Said(BaseModel):
    """What has been said so far; grows while a log is read."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="strings")

    evals: list[EvalData] = []
    checkpoints: list[CheckpointData] = []
    messages: list[Message] = []
    status: StatusData | None = None
    total_steps: int | None = None
    parameters: ParametersData | None = None
    data_report: DataReportData | None = None
    memory: MemoryData | None = None
    failed: FailedData | None = None
    first_time: float | None = None
    last_time: float | None = None

    def say(self, message: Message) -> None:
        """Remember words; the oldest are forgotten beyond a thousand."""
        self.messages.append(message)
        del self.messages[:-_REMEMBERED_MESSAGES]

    def forget_beyond(self, step: int) -> None:
        """A later attempt went on from `step`: what came after it no longer counts."""
        self.evals = [point for point in self.evals if point.step <= step]
        self.checkpoints = [known for known in self.checkpoints if known.step <= step]


@dataclass(frozen=True)
class RunHistory:
    """A run up to some moment."""

    steps: StepSeries
    evals: tuple[EvalData, ...] = ()  # in order of their steps; of step 0 there may be one more, of the base model
    checkpoints: tuple[CheckpointData, ...] = ()
    messages: tuple[Message, ...] = ()  # the newest thousand
    status: StatusData | None = None  # the newest phase
    total_steps: int | None = None
    parameters: ParametersData | None = None
    data_report: DataReportData | None = None
    memory: MemoryData | None = None
    failed: FailedData | None = None  # of the newest attempt
    attempt: int = 0  # the newest that has reported
    first_time: float | None = None
    last_time: float | None = None  # of the newest event
    next_offset: int = 0  # bytes of the log that are in here

    @property
    def last_step(self) -> int:
        """The newest logged step; 0 before the first."""
        return int(self.steps.last("step") or 0)

    @property
    def base_eval(self) -> EvalData | None:
        """The held-out measurement before the first update."""
        return next((point for point in self.evals if point.step == 0 or point.adapter_disabled), None)

    @property
    def tuned_evals(self) -> tuple[EvalData, ...]:
        """The held-out measurements of the model in training."""
        return tuple(point for point in self.evals if point.step > 0 and not point.adapter_disabled)

    @property
    def best_eval(self) -> EvalData | None:
        """The lowest held-out loss since the first update."""
        finite = [point for point in self.tuned_evals if math.isfinite(point.eval_loss)]
        return min(finite, key=lambda point: point.eval_loss, default=None)

    @property
    def finished_phase(self) -> Literal["finished", "stopped"] | None:
        """Whether the newest attempt said good-bye, and how."""
        if self.status is not None and self.status.phase in ("finished", "stopped"):
            return "finished" if self.status.phase == "finished" else "stopped"
        return None

    def mean_tokens_per_second(self) -> float | None:
        """Throughput of the training itself; loading, evaluations and saves do not count."""
        tokens, seconds = self.steps.throughput
        return tokens / seconds if seconds > 0 else None


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

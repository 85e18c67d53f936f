"""The history of a run across its attempts, read from its log: curves, held-out losses, checkpoints, messages."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from loratory.engine.files import size_and_time
from loratory.engine.runs.history.events import (
    AnswersData,
    CheckpointData,
    DataReportData,
    EvalData,
    Event,
    FailedData,
    MemoryData,
    ParametersData,
    Phase,
    ResumedData,
    RolloutData,
    StatusData,
    StepData,
    WarningData,
    parse_event,
)
from loratory.engine.runs.history.log import read_lines
from loratory.engine.runs.history.steps import (
    MEASURES,
    Array,
    GrowingColumns,
    StepSeries,
    is_step_line,
    rows_of_plain_steps,
    tables_of,
)

_MAX_MESSAGES = 1000
_MAX_ANSWERED = 16  # evaluations
_PACE_STEPS = 200
_SHORTEST_LEFT_SECONDS = 0.5  # less would be displayed as 0 s


class Message(NamedTuple):
    """A line of text from the worker."""

    time: float
    kind: Literal["status", "warning", "failed", "resumed"]
    text: str


_Point = TypeVar("_Point", AnswersData, RolloutData)


def _thin(points: tuple[_Point, ...]) -> tuple[_Point, ...]:
    """Return points without the one that is closest to its neighbours, where there are many."""
    gaps = [later.step - earlier.step for earlier, later in zip(points, points[2:], strict=False)]
    closest = 1 + gaps.index(min(gaps)) if len(points) > _MAX_ANSWERED else len(points)
    return points[:closest] + points[closest + 1 :]


class HistoryFacts(BaseModel):
    """The reports of a run except its steps; small for a run of any length."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    evals: tuple[EvalData, ...] = ()  # in order of their steps; of step 0 there may be one more, of the base model
    answers: tuple[AnswersData, ...] = ()  # in order of their steps, of some evaluations where there are many
    rollouts: tuple[RolloutData, ...] = ()  # in order of their steps, of some steps that learn from rewards
    checkpoints: tuple[CheckpointData, ...] = ()
    resumes: tuple[int, ...] = ()  # the steps from which attempts continued
    messages: tuple[Message, ...] = ()  # the newest thousand
    status: StatusData | None = None  # the newest phase
    total_steps: int | None = None
    parameters: ParametersData | None = None
    data_report: DataReportData | None = None
    memory: MemoryData | None = None
    failed: FailedData | None = None  # of the newest attempt
    attempt: int = 0  # the newest that has reported
    attempt_is_fresh: bool = False  # it has not yet reported anything that has a step
    last_time: float | None = None  # of the newest event
    save_seconds: float | None = None  # that the newest checkpoint took
    phase_seconds: dict[Phase, float] = {}  # of all attempts; evaluations and saves do not count as `training`
    next_offset: int = 0  # bytes of the log that are in here

    def with_event(self, event: Event) -> Self:
        """Add one event; values of steps are stored elsewhere."""
        changes = self.until(event.time)
        if event.attempt > self.attempt:  # what passes between two attempts does not count
            changes |= {"attempt": event.attempt, "failed": None, "phase_seconds": self.phase_seconds}
        is_fresh = self.attempt_is_fresh or event.attempt > self.attempt
        has_step = isinstance(
            event.data, ResumedData | StepData | EvalData | AnswersData | RolloutData | CheckpointData
        )
        changes["attempt_is_fresh"] = is_fresh and not has_step
        match event.data:
            case EvalData() as point:
                changes |= {"evals": (*self.evals, point)} | self.until(event.time, point.seconds, "evaluating")
            case AnswersData() as answers:
                changes["answers"] = _thin((*self.answers, answers))
            case RolloutData() as rollout:
                changes["rollouts"] = _thin((*self.rollouts, rollout))
            case CheckpointData() as saved:
                others = (checkpoint for checkpoint in self.checkpoints if checkpoint.step != saved.step)
                changes["checkpoints"] = (*others, saved)
                since_last = max(event.time - (self.last_time or event.time), 0.0)
                seconds = since_last if saved.seconds is None else saved.seconds  # older logs lack it
                changes |= {"save_seconds": seconds} | self.until(event.time, seconds, "saving")
            case ResumedData(step=step):
                changes["resumes"] = (*self.resumes, step)
            case StatusData() as status:
                changes |= {"status": status, "total_steps": status.total_steps or self.total_steps}
            case MemoryData() as memory:
                changes["memory"] = memory if self.memory is None else _highest(self.memory, memory)
            case ParametersData() | DataReportData() | FailedData() as data:
                changes[data.kind] = data  # the fields have the names of the kinds
        message = _message_of(event)
        if message is not None:
            changes["messages"] = (*self.messages, message)[-_MAX_MESSAGES:]
        return self.model_copy(update=changes)

    def until(self, time: float, seconds: float = 0.0, other: Phase = "training") -> dict[str, object]:
        """Return the changes once the worker's phase has lasted until a time, of which `seconds` were spent on another one."""
        phase, totals = self.status.phase if self.status is not None else other, dict(self.phase_seconds)
        for name, amount in ((phase, time - (self.last_time or time) - seconds), (other, seconds)):
            if amount:  # in the order in which they began
                totals[name] = totals.get(name, 0.0) + amount
        return {"last_time": time, "phase_seconds": totals}

    def last_valid_step(self, event: Event) -> int | None:
        """Return the step after which an event voids all reports; None if it voids none."""
        is_fresh = self.attempt_is_fresh or event.attempt > self.attempt
        match event.data:
            case ResumedData(step=step):
                return step
            case StepData() | EvalData() | AnswersData() | RolloutData() | CheckpointData() as data if is_fresh:
                return max(data.step - 1, 0) if data.step else -1  # without `resumed`, the attempt began there
        return None

    def up_to(self, step: int) -> Self:
        """Drop the reports after a step, from which a later attempt continued."""
        reports: dict[str, object] = {"resumes": tuple(resumed for resumed in self.resumes if resumed <= step)}
        for name in ("evals", "answers", "rollouts", "checkpoints"):
            reports[name] = tuple(point for point in getattr(self, name) if point.step <= step)
        return self.model_copy(update=reports)


def _message_of(event: Event) -> Message | None:
    match event.data:
        case StatusData(message=text) if text:
            return Message(event.time, "status", text)
        case WarningData(message=text):
            return Message(event.time, "warning", text)
        case FailedData(what=what, fix=fix):
            return Message(event.time, "failed", f"{what} {fix}")
        case ResumedData(step=step):
            return Message(event.time, "resumed", f"Continued from step {step}.")
    return None


def _highest(first: MemoryData, other: MemoryData) -> MemoryData:
    """Return the peaks over several attempts, each of which is a separate process that counts from zero."""
    peaks = {
        name: max((value for value in (getattr(first, name), getattr(other, name)) if value is not None), default=None)
        for name in MemoryData.model_fields
        if name.startswith("peak_")
    }
    return other.model_copy(update=peaks)


class RunHistory(HistoryFacts):
    """The history of a run at some moment."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    steps: StepSeries

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

    def seconds_of_training(self, rows: npt.NDArray[np.intp]) -> Array:
        """Return the seconds from the first to some logged steps; a pause between two attempts counts as a usual step."""
        times = self.steps.column("time")
        seconds = times[rows] - times[:1]
        for first in np.unique(np.searchsorted(self.steps.steps, self.resumes, side="right")):  # after the pause
            if 0 < first < len(times):
                seconds[rows >= first] -= times[first] - times[first - 1] - np.median(np.diff(times))
        return seconds

    def mean_tokens_per_second(self) -> float | None:
        """Throughput of the training itself; loading, evaluations and saves do not count."""
        tokens, seconds = self.steps.throughput
        return tokens / seconds if seconds > 0 else None


def seconds_per_step(history: RunHistory) -> float | None:
    """Return the wall-clock seconds of a recent step without evaluations and saves; None before the second one."""
    steps, times = history.steps.column("step")[-_PACE_STEPS:], history.steps.column("time")[-_PACE_STEPS:]
    if len(steps) < 2 or steps[-1] <= steps[0] or times[-1] <= times[0]:
        return None
    other = sum(point.seconds for point in history.tuned_evals if steps[0] <= point.step < steps[-1])
    other += sum(history.save_seconds or 0.0 for saved in history.checkpoints if steps[0] <= saved.step < steps[-1])
    return float(max(times[-1] - times[0] - other, 0.0) / (steps[-1] - steps[0]))


def seconds_left(history: RunHistory, clock: Callable[[], float] = time.time) -> float | None:
    """Return the seconds until a run has trained, evaluated and saved all; None while they are unknown or overrun.

    What has passed since the newest event counts, as far as what is under way should take; `clock` gives seconds since the
    epoch. Evaluations and saves take as long as the newest did.
    """
    pace, newest, total, step = seconds_per_step(history), history.last_time, history.total_steps, history.last_step
    if pace is None or newest is None or not total:
        return None
    evaluated, saved = [point.step for point in history.tuned_evals], [point.step for point in history.checkpoints]
    evaluation, save = history.evals[-1].seconds if history.evals else 0.0, history.save_seconds or 0.0
    evaluations = _count_due(total, evaluated)
    is_evaluating = evaluations > _count_due(total, [*evaluated, step]) if evaluated else step >= total
    under_way = evaluation if is_evaluating and evaluations else pace if step < total else save
    work = max(total - step, 0) * pace + evaluations * evaluation + (_count_due(total, saved) + 1) * save
    seconds = work - min(max(clock() - newest, 0.0), under_way)
    return seconds if math.isfinite(seconds) and seconds >= _SHORTEST_LEFT_SECONDS else None


def _count_due(total: int, steps: Sequence[int]) -> int:
    """Return how many more are due up to the last step, where the first of `steps` shows how often."""
    last, every = (steps[-1], max(steps[0], 1)) if steps else (0, total)
    return max(-(-(total - last) // every), 0)


_CHUNK_BYTES = 1_000_000


class HistoryReader:
    """Follows the log of one run; each `update` reads only new events, or the whole log if it was replaced.

    `resumed` supersedes the later steps, evaluations and checkpoints of earlier attempts, and so does an attempt that
    restarts without one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._restart()
        self._history = self._snapshot()

    def _restart(self) -> None:
        self._facts = HistoryFacts()
        self._tables = [GrowingColumns(), *(GrowingColumns(1 + len(names)) for names in MEASURES)]

    @property
    def steps_read(self) -> int:
        """Number of steps that this reader has in memory."""
        return len(self._history.steps)

    def update(self) -> RunHistory:
        """Read new events; returns the same object if there are none."""
        with self._reading:
            start = self._facts.next_offset
            if size_and_time(self._path)[0] < start:  # deleted or replaced
                self._restart()
                start = -1
            offset = self._facts.next_offset
            while (batch := read_lines(self._path, offset, _CHUNK_BYTES)).next_offset != offset:
                offset = batch.next_offset
                for are_steps, lines in itertools.groupby(batch.lines, is_step_line):
                    self._take_lines(list(lines), are_steps)
            if offset != start:
                self._facts = self._facts.model_copy(update={"next_offset": offset})
                self._history = self._snapshot()
            return self._history

    def _snapshot(self) -> RunHistory:
        columns, *measures = (table.array() for table in self._tables)
        return RunHistory.model_construct(steps=StepSeries(columns, measures), **dict(self._facts))

    def _take_lines(self, lines: list[bytes], are_steps: bool) -> None:
        # The first event of an attempt decides what it supersedes: it is parsed completely, and so are irregular lines.
        if are_steps and (not self._facts.attempt or self._facts.attempt_is_fresh):
            self._take_each(lines[:1])
            lines = lines[1:]
        plain = rows_of_plain_steps(lines, self._facts.attempt) if are_steps and lines else None
        if plain is None or not np.all(np.diff(plain[0][0], prepend=self._tables[0].last_step()) > 0):
            self._take_each(lines)
            return
        for table, rows in zip(self._tables, plain, strict=True):
            table.extend(rows)
        self._facts = self._facts.model_copy(update=self._facts.until(float(plain[0][1, -1])))

    def _take_each(self, lines: list[bytes]) -> None:
        for event in map(parse_event, lines):
            if event is not None:
                self._take(event)

    def _take(self, event: Event) -> None:
        last_valid = self._facts.last_valid_step(event)
        if last_valid is not None:
            for table in self._tables:
                table.truncate(last_valid)
            self._facts = self._facts.up_to(last_valid)
        if isinstance(event.data, StepData):
            for table, rows in zip(self._tables, tables_of(event.data, event.time), strict=True):
                table.truncate(event.data.step - 1)
                table.extend(rows)
        self._facts = self._facts.with_event(event)


def read_history(path: Path) -> RunHistory:
    """Return the whole history of a log."""
    return HistoryReader(path).update()

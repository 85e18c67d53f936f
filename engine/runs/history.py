"""What happened in a run so far, across its attempts: curves, held-out losses, checkpoints, warnings."""

import itertools
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pydantic_core

from engine.runs.event_log import parse_event, read_lines
from engine.runs.events import (
    CheckpointData,
    CheckpointEvent,
    DataReportData,
    DataReportEvent,
    EvalData,
    EvalEvent,
    Event,
    FailedData,
    FailedEvent,
    MemoryData,
    MemoryEvent,
    ParametersData,
    ParametersEvent,
    ResumedEvent,
    StatusData,
    StatusEvent,
    StepData,
    StepEvent,
    WarningEvent,
)

Array = npt.NDArray[np.float64]

StepColumn = Literal[
    "step",
    "time",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "trained_tokens",
    "tokens_per_second",
    "memory_bytes",
]
_COLUMNS: tuple[StepColumn, ...] = (
    "step",
    "time",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "trained_tokens",
    "tokens_per_second",
    "memory_bytes",
)
_CHUNK_BYTES = 1_000_000
_REMEMBERED_MESSAGES = 1000


class StepSeries:
    """The logged steps, one float64 array of shape (steps,) for each column; never changes once it was handed out.

    What a step did not report is NaN. `step` rises strictly.
    """

    def __init__(self, columns: Array) -> None:
        self._columns = columns  # (columns, steps)

    def __len__(self) -> int:
        return int(self._columns.shape[1])

    def column(self, name: StepColumn) -> Array:
        """One value for each logged step."""
        values: Array = self._columns[_COLUMNS.index(name)]
        return values

    def last(self, name: StepColumn) -> float | None:
        """The newest value; None where there is none, or it is no finite number."""
        if not len(self):
            return None
        value = float(self.column(name)[-1])
        return value if math.isfinite(value) else None

    @property
    def steps(self) -> Array:
        return self.column("step")

    @property
    def losses(self) -> Array:
        return self.column("loss")


class Message(NamedTuple):
    """Something that was said in words."""

    time: float
    kind: Literal["status", "warning", "failed", "resumed"]
    text: str


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
        speeds = self.steps.column("tokens_per_second")
        tokens = np.diff(self.steps.column("tokens"), prepend=0.0)
        counted = (speeds > 0) & (tokens > 0) & np.isfinite(speeds)
        seconds = float(np.sum(tokens[counted] / speeds[counted]))
        return float(np.sum(tokens[counted])) / seconds if seconds > 0 else None


@dataclass
class _Said:
    """The parts of a history that are small."""

    evals: list[EvalData] = field(default_factory=list)
    checkpoints: list[CheckpointData] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    status: StatusData | None = None
    total_steps: int | None = None
    parameters: ParametersData | None = None
    data_report: DataReportData | None = None
    memory: MemoryData | None = None
    failed: FailedData | None = None
    first_time: float | None = None
    last_time: float | None = None


class HistoryReader:
    """Follows the log of one run; each `update` reads only what is new.

    `resumed` supersedes the later steps, evaluations and checkpoints of earlier attempts, and so does an attempt that
    begins anew without one.

    Args:
        path: The event log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._offset = 0
        self._attempt = 0
        self._attempt_is_fresh = False  # nothing that has a step was seen of it yet
        self._columns = _GrowingColumns()
        self._said = _Said()
        self._history = RunHistory(steps=self._columns.series())

    def update(self) -> RunHistory:
        """Read on; the very same object comes back where nothing is new."""
        with self._reading:
            start = self._offset
            while (batch := read_lines(self._path, self._offset, _CHUNK_BYTES)).next_offset != self._offset:
                self._offset = batch.next_offset
                for are_steps, lines in itertools.groupby(batch.lines, _looks_like_step):
                    self._take_lines(list(lines), are_steps)
            if self._offset != start:
                self._history = self._snapshot()
            return self._history

    def _take_lines(self, lines: list[bytes], are_steps: bool) -> None:
        while lines:
            # The first event of an attempt decides what it supersedes: it goes the careful way, and so does what is odd.
            if are_steps and self._attempt and not self._attempt_is_fresh:
                rows = _rows_of_plain_steps(lines, self._attempt)
                if rows is not None and bool(np.all(np.diff(rows[0], prepend=self._columns.last_step()) > 0)):
                    self._columns.extend(rows)
                    self._said.last_time = float(rows[1, -1])
                    return
                self._take_carefully(lines)
                return
            self._take_carefully(lines[:1])
            lines = lines[1:]

    def _take_carefully(self, lines: list[bytes]) -> None:
        for line in lines:
            event = parse_event(line)
            if event is not None:
                self._take(event)

    def _take(self, event: Event) -> None:
        said = self._said
        if event.attempt > self._attempt:
            self._attempt = event.attempt
            self._attempt_is_fresh = True
            said.failed = None
        said.first_time = event.time if said.first_time is None else said.first_time
        said.last_time = event.time
        match event:
            case StepEvent(data=data):
                self._begin_at(data.step)
                self._columns.truncate(data.step - 1)
                self._columns.extend(_row_of(data, event.time))
            case EvalEvent(data=data):
                self._begin_at(data.step)
                said.evals.append(data)
            case CheckpointEvent(data=data):
                self._begin_at(data.step)
                said.checkpoints = [known for known in said.checkpoints if known.step != data.step] + [data]
            case ResumedEvent(data=resumed):
                self._attempt_is_fresh = False
                self._forget_beyond(resumed.step)
                self._say(event.time, "resumed", f"Continued from step {resumed.step}.")
            case StatusEvent(data=status):
                said.status = status
                said.total_steps = status.total_steps or said.total_steps
                if status.message:
                    self._say(event.time, "status", status.message)
            case MemoryEvent(data=memory):
                said.memory = memory
            case ParametersEvent(data=parameters):
                said.parameters = parameters
            case DataReportEvent(data=report):
                said.data_report = report
            case WarningEvent(data=warning):
                self._say(event.time, "warning", warning.message)
            case FailedEvent(data=failed):
                said.failed = failed
                self._say(event.time, "failed", f"{failed.what} {failed.fix}")

    def _begin_at(self, step: int) -> None:
        """The first thing with a step that an attempt says: without `resumed`, it began there."""
        if self._attempt_is_fresh:
            self._attempt_is_fresh = False
            self._forget_beyond(max(step - 1, 0) if step else -1)

    def _forget_beyond(self, step: int) -> None:
        self._columns.truncate(step)
        self._said.evals = [point for point in self._said.evals if point.step <= step]
        self._said.checkpoints = [known for known in self._said.checkpoints if known.step <= step]

    def _say(self, time: float, kind: Literal["status", "warning", "failed", "resumed"], text: str) -> None:
        self._said.messages.append(Message(time, kind, text))
        del self._said.messages[:-_REMEMBERED_MESSAGES]

    def _snapshot(self) -> RunHistory:
        said = self._said
        return RunHistory(
            steps=self._columns.series(),
            evals=tuple(said.evals),
            checkpoints=tuple(said.checkpoints),
            messages=tuple(said.messages),
            status=said.status,
            total_steps=said.total_steps,
            parameters=said.parameters,
            data_report=said.data_report,
            memory=said.memory,
            failed=said.failed,
            attempt=self._attempt,
            first_time=said.first_time,
            last_time=said.last_time,
            next_offset=self._offset,
        )


def read_history(path: Path) -> RunHistory:
    """The whole history of a log, for those who ask once."""
    return HistoryReader(path).update()


class _GrowingColumns:
    """Rows appended in amortized constant time; what was handed out before is never written again."""

    def __init__(self) -> None:
        self._buffer = np.empty((len(_COLUMNS), 256))  # (columns, capacity)
        self._count = 0

    def series(self) -> StepSeries:
        view = self._buffer[:, : self._count]
        view.flags.writeable = False
        return StepSeries(view)

    def last_step(self) -> float:
        return float(self._buffer[0, self._count - 1]) if self._count else 0.0

    def extend(self, rows: Array) -> None:
        needed = self._count + rows.shape[1]
        if needed > self._buffer.shape[1]:
            self._move(capacity=max(needed, 2 * self._buffer.shape[1]))
        self._buffer[:, self._count : needed] = rows
        self._count = needed

    def truncate(self, step: int) -> None:
        kept = int(np.searchsorted(self._buffer[0, : self._count], step, side="right"))
        if kept < self._count:
            self._count = kept
            self._move(capacity=self._buffer.shape[1])  # earlier series still show the rows beyond

    def _move(self, capacity: int) -> None:
        buffer = np.empty((len(_COLUMNS), capacity))
        buffer[:, : self._count] = self._buffer[:, : self._count]
        self._buffer = buffer


def _row_of(data: StepData, time: float) -> Array:
    values = [time if name == "time" else getattr(data, name) for name in _COLUMNS]
    return np.array([[math.nan if value is None else value] for value in values], dtype=np.float64)


def _looks_like_step(line: bytes) -> bool:
    return line.find(b'"kind":"step"', 0, 120) >= 0


def _rows_of_plain_steps(lines: list[bytes], attempt: int) -> Array | None:
    """The lines as an array of shape (columns, lines), if each is a complete step of this attempt.

    Building a typed event for each of a million steps would take ten times as long.
    """
    try:
        parsed: list[dict[str, Any]] = [pydantic_core.from_json(line) for line in lines]
        if any(item["kind"] != "step" or item["attempt"] != attempt for item in parsed):
            return None
        steps = [item["data"] for item in parsed]
        columns = [[item["time"] for item in parsed] if name == "time" else _column(steps, name) for name in _COLUMNS]
        return np.array(columns, dtype=np.float64)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # the careful way decides, line by line


def _column(steps: list[dict[str, Any]], name: StepColumn) -> list[Any]:
    if name in ("grad_norm", "memory_bytes"):
        return [math.nan if (value := step.get(name)) is None else value for step in steps]
    if name == "trained_tokens":
        return [step.get(name, 0) for step in steps]
    return [step[name] for step in steps]

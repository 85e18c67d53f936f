"""What happened in a run so far, across its attempts: curves, held-out losses, checkpoints, warnings."""

import itertools
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

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
    StepEvent,
    WarningEvent,
)
from engine.runs.history_cache import HistoryCache, ReadSoFar
from engine.runs.peaks import higher
from engine.runs.run import Run
from engine.runs.said import Message, Said
from engine.runs.steps import GrowingColumns, StepSeries, looks_like_step, row_of, rows_of_plain_steps

_CHUNK_BYTES = 1_000_000


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


class HistoryReader:
    """Follows the log of one run; each `update` reads only what is new.

    `resumed` supersedes the later steps, evaluations and checkpoints of earlier attempts, and so does an attempt that
    begins anew without one.

    Args:
        path: The event log.
        cache: Where a long history is kept for the next reader; None keeps nothing.
    """

    def __init__(self, path: Path, cache: HistoryCache | None = None) -> None:
        self._path = path
        self._cache = cache
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._has_begun = False
        self._offset = 0
        self._attempt = 0
        self._attempt_is_fresh = False  # nothing that has a step was seen of it yet
        self._columns = GrowingColumns()
        self._said = Said()
        self._history = RunHistory(steps=self._columns.series())

    @classmethod
    def of_run(cls, run: Run) -> "HistoryReader":
        """Follow a run of a home, beginning with what was kept of it."""
        return cls(run.folder.events, HistoryCache.of_run(run))

    @property
    def steps_read(self) -> int:
        """How many steps this reader holds in memory."""
        return len(self._history.steps)

    def update(self) -> RunHistory:
        """Read on; the very same object comes back where nothing is new."""
        with self._reading:
            start = self._offset
            if _size_of(self._path) < self._offset:  # deleted or cut: what is left is read from its beginning
                self._forget_all()
                start = -1
            if not self._has_begun:
                self._begin()
            while (batch := read_lines(self._path, self._offset, _CHUNK_BYTES)).next_offset != self._offset:
                self._offset = batch.next_offset
                for are_steps, lines in itertools.groupby(batch.lines, looks_like_step):
                    self._take_lines(list(lines), are_steps)
            if self._offset != start:
                self._history = self._snapshot()
                self._keep()
            return self._history

    def _forget_all(self) -> None:
        self._offset = self._attempt = 0
        self._attempt_is_fresh = False
        self._columns, self._said = GrowingColumns(), Said()

    def _begin(self) -> None:
        self._has_begun = True
        read = self._cache.load() if self._cache is not None else None
        if read is not None:
            self._offset, self._attempt, self._attempt_is_fresh, columns, self._said = read
            self._columns.extend(columns)

    def _keep(self) -> None:
        if self._cache is not None and self._cache.is_worth_saving(self._offset):
            columns = self._columns.array()
            self._cache.save(ReadSoFar(self._offset, self._attempt, self._attempt_is_fresh, columns, self._said))

    def _take_lines(self, lines: list[bytes], are_steps: bool) -> None:
        while lines:
            # The first event of an attempt decides what it supersedes: it goes the careful way, and so does what is odd.
            if are_steps and self._attempt and not self._attempt_is_fresh:
                rows = rows_of_plain_steps(lines, self._attempt)
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
                self._columns.extend(row_of(data, event.time))
            case EvalEvent(data=data):
                self._begin_at(data.step)
                said.evals.append(data)
            case CheckpointEvent(data=data):
                self._begin_at(data.step)
                said.checkpoints = [known for known in said.checkpoints if known.step != data.step] + [data]
            case ResumedEvent(data=resumed):
                self._attempt_is_fresh = False
                self._forget_beyond(resumed.step)
                said.say(Message(event.time, "resumed", f"Continued from step {resumed.step}."))
            case StatusEvent(data=status):
                said.status = status
                said.total_steps = status.total_steps or said.total_steps
                if status.message:
                    said.say(Message(event.time, "status", status.message))
            case MemoryEvent(data=memory):
                said.memory = higher(said.memory, memory)
            case ParametersEvent(data=parameters):
                said.parameters = parameters
            case DataReportEvent(data=report):
                said.data_report = report
            case WarningEvent(data=warning):
                said.say(Message(event.time, "warning", warning.message))
            case FailedEvent(data=failed):
                said.failed = failed
                said.say(Message(event.time, "failed", f"{failed.what} {failed.fix}"))

    def _begin_at(self, step: int) -> None:
        """The first thing with a step that an attempt says: without `resumed`, it began there."""
        if self._attempt_is_fresh:
            self._attempt_is_fresh = False
            self._forget_beyond(max(step - 1, 0) if step else -1)

    def _forget_beyond(self, step: int) -> None:
        self._columns.truncate(step)
        self._said.forget_beyond(step)

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


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_history(path: Path) -> RunHistory:
    """The whole history of a log, for those who ask once."""
    return HistoryReader(path).update()

"""What happened in a run so far, across its attempts: curves, held-out losses, checkpoints, warnings."""

import contextlib
import hashlib
import itertools
import os
import secrets
import threading
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.runs.history.events import (
    CheckpointEvent,
    DataReportEvent,
    EvalEvent,
    Event,
    FailedEvent,
    MemoryEvent,
    ParametersEvent,
    ResumedEvent,
    StatusEvent,
    StepEvent,
    WarningEvent,
)
from engine.runs.history.log import parse_event, read_lines
from engine.runs.history.run_history import Message, RunHistory, Said
from engine.runs.history.steps import (
    COLUMNS,
    Array,
    GrowingColumns,
    looks_like_step,
    row_of,
    rows_of_plain_steps,
)
from engine.runs.peaks import higher
from engine.runs.run import Run

_VERSION = 1
_WORTHWHILE_BYTES = 8_000_000  # below it parsing takes no time that a person would notice
_GROWN_BY = 0.125  # share of the log that is new; so the whole of a run's saves stays below ten times its last one
_FINGERPRINT_BYTES = 4096


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int
    offset: int
    attempt: int
    attempt_is_fresh: bool
    fingerprint: str
    said: Said


class ReadSoFar(NamedTuple):
    """Where a reader of a log stands."""

    offset: int  # byte after the last line that is in here
    attempt: int
    attempt_is_fresh: bool
    columns: Array  # (columns, steps)
    said: Said


class HistoryCache:
    """Keeps how far one log was read, for whoever reads it next.

    Args:
        path: The cache's file.
        log: The event log that it is about.
    """

    def __init__(self, path: Path, log: Path) -> None:
        self._path = path
        self._log = log
        self._saved_offset = 0

    @classmethod
    def of_run(cls, run: Run) -> "HistoryCache":
        """The cache of a run, in its home's cache folder."""
        return cls(cached_history_path(run), run.folder.events)

    def load(self) -> ReadSoFar | None:
        """What was saved, where it still is the beginning of the log."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                facts = _Facts.model_validate_json(saved["facts"].tobytes())
                if facts.version != _VERSION or facts.fingerprint != _fingerprint(self._log, facts.offset):
                    return None
                columns: Array = saved["columns"]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, ValidationError):
            return None
        if columns.dtype != np.float64 or columns.ndim != 2 or columns.shape[0] != len(COLUMNS):
            return None
        self._saved_offset = facts.offset
        return ReadSoFar(facts.offset, facts.attempt, facts.attempt_is_fresh, columns, facts.said)

    def is_worth_saving(self, offset: int) -> bool:
        """Whether so much is new since the last save that the next reader would feel it."""
        new = offset - self._saved_offset
        return new > _WORTHWHILE_BYTES and new > offset * _GROWN_BY

    def save(self, read: ReadSoFar) -> None:
        """Keep it; a cache that cannot be written costs time, not truth."""
        self._saved_offset = read.offset
        facts = _Facts(
            version=_VERSION,
            offset=read.offset,
            attempt=read.attempt,
            attempt_is_fresh=read.attempt_is_fresh,
            fingerprint=_fingerprint(self._log, read.offset),
            said=read.said,
        )
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}.tmp")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                words = np.frombuffer(facts.model_dump_json().encode(), dtype=np.uint8)
                np.savez(file, columns=read.columns, facts=words)
            temporary.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def cached_history_path(run: Run) -> Path:
    """Where the history of a run is cached; the file may be missing."""
    home = run.folder.path.parents[2]  # home/runs/owner/run
    return home / "cache" / "runs" / run.owner / f"{run.id}.npz"


def _fingerprint(log: Path, offset: int) -> str:
    """Of the bytes at both ends of what was read: a log that was cut or replaced has another one."""
    try:
        with log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                return "shorter"
            file.seek(0)
            first = file.read(min(offset, _FINGERPRINT_BYTES))
            file.seek(max(0, offset - _FINGERPRINT_BYTES))
            last = file.read(min(offset, _FINGERPRINT_BYTES))
    except OSError:
        return "missing"
    return hashlib.sha256(b"%d\n" % offset + first + last).hexdigest()


_CHUNK_BYTES = 1_000_000


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

"""Read the history of a run from its log, and keep what was read of long ones for the next reader."""

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

from engine.runs.history.events import CheckpointData, EvalData, Event, ResumedData, StepData, parse_event
from engine.runs.history.log import read_lines
from engine.runs.history.run_history import HistoryFacts, RunHistory
from engine.runs.history.steps import (
    COLUMNS,
    Array,
    GrowingColumns,
    looks_like_step,
    row_of,
    rows_of_plain_steps,
)
from engine.runs.run import Run

_VERSION = 2
_WORTHWHILE_BYTES = 8_000_000  # below it parsing takes no time that a person would notice
_GROWN_BY = 0.125  # share of the log that is new; so the whole of a run's saves stays below ten times its last one
_FINGERPRINT_BYTES = 4096


class _CachedFacts(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int
    attempt_is_fresh: bool
    fingerprint: str
    facts: HistoryFacts


class ReadSoFar(NamedTuple):
    """The position of a reader in a log, and what it has read."""

    facts: HistoryFacts
    attempt_is_fresh: bool
    columns: Array  # (columns, steps)


class HistoryCache:
    """Caches what was read of one log, for its next reader.

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
        """Return what was saved, where it still is the beginning of the log."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                cached = _CachedFacts.model_validate_json(saved["facts"].tobytes())
                offset = cached.facts.next_offset
                if cached.version != _VERSION or cached.fingerprint != _fingerprint(self._log, offset):
                    return None
                columns: Array = saved["columns"]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, ValidationError):
            return None
        if columns.dtype != np.float64 or columns.ndim != 2 or columns.shape[0] != len(COLUMNS):
            return None
        self._saved_offset = offset
        return ReadSoFar(cached.facts, cached.attempt_is_fresh, columns)

    def is_worth_saving(self, offset: int) -> bool:
        """Whether so much is new since the last save that the next reader would notice."""
        new = offset - self._saved_offset
        return new > _WORTHWHILE_BYTES and new > offset * _GROWN_BY

    def save(self, read: ReadSoFar) -> None:
        """Save it; a cache that cannot be written costs time, not correctness."""
        self._saved_offset = read.facts.next_offset
        cached = _CachedFacts(
            version=_VERSION,
            attempt_is_fresh=read.attempt_is_fresh,
            fingerprint=_fingerprint(self._log, read.facts.next_offset),
            facts=read.facts,
        )
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}.tmp")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                facts = np.frombuffer(cached.model_dump_json().encode(), dtype=np.uint8)
                np.savez(file, columns=read.columns, facts=facts)
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
    restarts without one.

    Args:
        path: The event log.
        cache: Where a long history is kept for the next reader; None keeps nothing.
    """

    def __init__(self, path: Path, cache: HistoryCache | None = None) -> None:
        self._path = path
        self._cache = cache
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._has_begun = False
        self._facts = HistoryFacts()
        self._attempt_is_fresh = False  # the newest attempt has not yet reported anything that has a step
        self._columns = GrowingColumns()
        self._history = self._snapshot()

    @classmethod
    def of_run(cls, run: Run) -> "HistoryReader":
        """Follow a run of a home, beginning with what is cached of it."""
        return cls(run.folder.events, HistoryCache.of_run(run))

    @property
    def steps_read(self) -> int:
        """How many steps this reader holds in memory."""
        return len(self._history.steps)

    def update(self) -> RunHistory:
        """Read on; returns the very same object where nothing is new."""
        with self._reading:
            start = self._facts.next_offset
            if _size_of(self._path) < start:  # deleted or cut: what is left is read from its beginning
                self._facts, self._attempt_is_fresh, self._columns = HistoryFacts(), False, GrowingColumns()
                start = -1
            if not self._has_begun:
                self._load_cached()
            offset = self._facts.next_offset
            while (batch := read_lines(self._path, offset, _CHUNK_BYTES)).next_offset != offset:
                offset = batch.next_offset
                for are_steps, lines in itertools.groupby(batch.lines, looks_like_step):
                    self._take_lines(list(lines), are_steps)
            if offset != start:
                self._facts = self._facts.model_copy(update={"next_offset": offset})
                self._history = self._snapshot()
                self._save_cached()
            return self._history

    def _snapshot(self) -> RunHistory:
        return RunHistory.model_construct(steps=self._columns.series(), **dict(self._facts))

    def _load_cached(self) -> None:
        self._has_begun = True
        read = self._cache.load() if self._cache is not None else None
        if read is not None:
            self._facts, self._attempt_is_fresh, columns = read
            self._columns.extend(columns)

    def _save_cached(self) -> None:
        if self._cache is not None and self._cache.is_worth_saving(self._facts.next_offset):
            self._cache.save(ReadSoFar(self._facts, self._attempt_is_fresh, self._columns.array()))

    def _take_lines(self, lines: list[bytes], are_steps: bool) -> None:
        while lines:
            # The first event of an attempt decides what it supersedes: it is parsed completely, and so is what is odd.
            if are_steps and self._facts.attempt and not self._attempt_is_fresh:
                rows = rows_of_plain_steps(lines, self._facts.attempt)
                if rows is not None and bool(np.all(np.diff(rows[0], prepend=self._columns.last_step()) > 0)):
                    self._columns.extend(rows)
                    self._facts = self._facts.model_copy(update={"last_time": float(rows[1, -1])})
                    return
                self._take_one_by_one(lines)
                return
            self._take_one_by_one(lines[:1])
            lines = lines[1:]

    def _take_one_by_one(self, lines: list[bytes]) -> None:
        for line in lines:
            event = parse_event(line)
            if event is not None:
                self._take(event)

    def _take(self, event: Event) -> None:
        if event.attempt > self._facts.attempt:
            self._attempt_is_fresh = True
        data = event.data
        if isinstance(data, ResumedData):
            self._attempt_is_fresh = False
            self._drop_after(data.step)
        elif isinstance(data, StepData | EvalData | CheckpointData) and self._attempt_is_fresh:
            # The first of an attempt that has a step: without `resumed`, the attempt began there.
            self._attempt_is_fresh = False
            self._drop_after(max(data.step - 1, 0) if data.step else -1)
        if isinstance(data, StepData):
            self._columns.truncate(data.step - 1)
            self._columns.extend(row_of(data, event.time))
        self._facts = self._facts.with_event(event)

    def _drop_after(self, step: int) -> None:
        self._columns.truncate(step)
        self._facts = self._facts.up_to(step)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_history(path: Path) -> RunHistory:
    """Return the whole history of a log."""
    return HistoryReader(path).update()

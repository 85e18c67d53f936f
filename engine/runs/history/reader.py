"""Read the history of a run from its log, with a cache for long ones."""

import contextlib
import hashlib
import itertools
import os
import secrets
import threading
import zipfile
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from engine.config.objectives import METRICS
from engine.runs.history.events import Event, StepData, parse_event
from engine.runs.history.log import read_lines
from engine.runs.history.run_history import HistoryFacts, RunHistory
from engine.runs.history.steps import (
    COLUMNS,
    Array,
    GrowingColumns,
    StepSeries,
    looks_like_step,
    metrics_of,
    row_of,
    rows_of_plain_steps,
)
from engine.runs.run import Run

_VERSION = 4
_WORTHWHILE_BYTES = 8_000_000  # smaller logs are parsed quickly
_GROWN_BY = 0.125  # share of the log that is new; so the whole of a run's saves stays below ten times its last one
_FINGERPRINT_BYTES = 4096


class _CachedFacts(BaseModel):
    version: int
    fingerprint: str
    facts: HistoryFacts


class HistoryCache:
    """Caches the history of one log for its next reader."""

    def __init__(self, path: Path, log: Path) -> None:
        self._path = path
        self._log = log
        self._saved_offset = 0

    def load(self) -> tuple[HistoryFacts, Array, Array] | None:
        """Return the saved history, steps as (columns, steps), and their metrics, if it is still the start of the log."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                entry = _CachedFacts.model_validate_json(arrays["facts"].tobytes())
                offset = entry.facts.next_offset
                if entry.version != _VERSION or entry.fingerprint != _fingerprint(self._log, offset):
                    return None
                columns: Array = arrays["columns"]
                metrics: Array = arrays["metrics"]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, ValidationError):
            return None
        for one, width in ((columns, len(COLUMNS)), (metrics, 1 + len(METRICS))):
            if one.dtype != np.float64 or one.ndim != 2 or one.shape[0] != width:
                return None
        self._saved_offset = offset
        return entry.facts, columns, metrics

    def save(self, facts: HistoryFacts, columns: Array, metrics: Array) -> None:
        """Save the history if enough is new since the last save to matter.

        If the cache cannot be written, only time is lost.
        """
        offset = facts.next_offset
        new = offset - self._saved_offset
        if new <= _WORTHWHILE_BYTES or new <= offset * _GROWN_BY:
            return
        self._saved_offset = offset
        entry = _CachedFacts(version=_VERSION, fingerprint=_fingerprint(self._log, offset), facts=facts)
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}.tmp")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                np.savez(
                    file,
                    columns=columns,
                    metrics=metrics,
                    facts=np.frombuffer(entry.model_dump_json().encode(), dtype=np.uint8),
                )
            temporary.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def cached_history_path(run: Run) -> Path:
    """Where the history of a run is cached; the file may be missing."""
    home = run.folder.path.parents[2]  # home/runs/owner/run
    return home / "cache" / "runs" / run.owner / f"{run.id}.npz"


def _fingerprint(log: Path, offset: int) -> str:
    """A hash of the bytes at both ends of the history, which detects a truncated or replaced log."""
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
_ENDS_BYTES = 300  # longer than what distinguishes two events: their numbers, and when they were written


class HistoryReader:
    """Follows the log of one run; each `update` reads only new events, or the whole log if it was replaced.

    `resumed` supersedes the later steps, evaluations and checkpoints of earlier attempts, and so does an attempt that
    restarts without one.

    A long history is kept in `cache` for the next reader.
    """

    def __init__(self, path: Path, cache: HistoryCache | None = None) -> None:
        self._path = path
        self._cache = cache
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._has_begun = False
        self._facts = HistoryFacts()
        self._columns, self._metrics = GrowingColumns(), GrowingColumns(1 + len(METRICS))
        self._ends = (b"", b"")  # the first line and the last one of what was read
        self._history = self._snapshot()

    @classmethod
    def of_run(cls, run: Run) -> "HistoryReader":
        """Follow a run of a home, starting with its cached history."""
        return cls(run.folder.events, HistoryCache(cached_history_path(run), run.folder.events))

    @property
    def steps_read(self) -> int:
        """Number of steps that this reader has in memory."""
        return len(self._history.steps)

    def update(self) -> RunHistory:
        """Read new events; returns the same object if there are none."""
        with self._reading:
            start = self._facts.next_offset
            if start and self._ends_at(start, *map(len, self._ends)) != self._ends:
                # Deleted, truncated or replaced: read the log from its start.
                self._facts, self._ends = HistoryFacts(), (b"", b"")
                self._columns, self._metrics = GrowingColumns(), GrowingColumns(1 + len(METRICS))
                start = -1
            entry = self._cache.load() if self._cache is not None and not self._has_begun else None
            self._has_begun = True
            if entry is not None:
                self._facts, columns, metrics = entry
                self._columns.extend(columns)
                self._metrics.extend(metrics)
                self._ends = self._ends_at(self._facts.next_offset, _ENDS_BYTES, _ENDS_BYTES)
            offset = self._facts.next_offset
            while (batch := read_lines(self._path, offset, _CHUNK_BYTES)).next_offset != offset:
                offset = batch.next_offset
                # Of the lines that were taken, not of the file, which may be another one by now.
                self._ends = self._ends[0] or batch.lines[0] + b"\n", batch.lines[-1] + b"\n"
                for are_steps, lines in itertools.groupby(batch.lines, looks_like_step):
                    self._take_lines(list(lines), are_steps)
            if offset != start:
                self._facts = self._facts.model_copy(update={"next_offset": offset})
                self._history = self._snapshot()
                if self._cache is not None:
                    self._cache.save(self._facts, self._columns.array(), self._metrics.array())
            return self._history

    def _ends_at(self, offset: int, first_bytes: int, last_bytes: int) -> tuple[bytes, bytes]:
        """Return the first bytes of the log and the last ones before `offset`; nothing where it cannot be read."""
        try:
            with self._path.open("rb") as file:
                first = file.read(min(first_bytes, offset))
                file.seek(max(0, offset - last_bytes))
                return first, file.read(min(last_bytes, offset))
        except OSError:
            return b"", b""

    def _snapshot(self) -> RunHistory:
        return RunHistory.model_construct(
            steps=StepSeries(self._columns.array(), self._metrics.array()), **dict(self._facts)
        )

    def _take_lines(self, lines: list[bytes], are_steps: bool) -> None:
        while lines:
            # The first event of an attempt decides what it supersedes: it is parsed completely, and so are irregular lines.
            if are_steps and self._facts.attempt and not self._facts.attempt_is_fresh:
                plain = rows_of_plain_steps(lines, self._facts.attempt)
                rows, metrics = plain or (None, None)
                if rows is not None and bool(np.all(np.diff(rows[0], prepend=self._columns.last_step()) > 0)):
                    self._columns.extend(rows)
                    if metrics is not None and metrics.size:
                        self._metrics.extend(metrics)
                    self._facts = self._facts.model_copy(update={"last_time": float(rows[1, -1])})
                else:
                    self._take_one_by_one(lines)
                return
            self._take_one_by_one(lines[:1])
            lines = lines[1:]

    def _take_one_by_one(self, lines: list[bytes]) -> None:
        for event in map(parse_event, lines):
            if event is not None:
                self._take(event)

    def _take(self, event: Event) -> None:
        last_valid = self._facts.last_valid_step(event)
        if last_valid is not None:
            self._columns.truncate(last_valid)
            self._metrics.truncate(last_valid)
            self._facts = self._facts.up_to(last_valid)
        if isinstance(event.data, StepData):
            self._columns.truncate(event.data.step - 1)
            self._columns.extend(row_of(event.data, event.time))
            self._metrics.truncate(event.data.step - 1)
            self._metrics.extend(metrics_of(event.data))
        self._facts = self._facts.with_event(event)


def read_history(path: Path) -> RunHistory:
    """Return the whole history of a log."""
    return HistoryReader(path).update()

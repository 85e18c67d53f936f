"""The rows of all runs, quickly: what has ended is remembered, what lives is followed, nothing is read twice."""

import math
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import StorageError
from engine.files import write_atomically
from engine.runs.history.reader import HistoryReader
from engine.runs.history.run_history import RunHistory
from engine.runs.run import EVENTS_FILE, FINAL_STATES, NOTES_FILE, STATE_FILE, Run
from engine.runs.store import RunStore, folder_size_bytes
from engine.runs.summary import RunSummary, summarize

_INDEX_VERSION = 1


class Stamp(NamedTuple):
    """What the files of a run looked like when its row was drawn up; the same stamp means the same row."""

    state_modified: int  # nanoseconds
    notes_modified: int
    events_bytes: int


class Glance(NamedTuple):
    """The rows that could be read in the given time."""

    rows: list[RunSummary]  # newest first
    unread: int  # runs that no server has seen yet, and that are missing


class _Remembered(BaseModel):
    model_config = ConfigDict(frozen=True)

    stamp: Stamp
    summary: RunSummary


class _IndexFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int
    runs: dict[str, _Remembered]


class RunIndex:
    """Rows of the runs of one owner; one for a server, shared by all its pages.

    The rows of ended runs are kept in the home's cache, which may be deleted at any time.

    Args:
        store: Whose runs.
        history_of: Gives the history of a run where the caller reads histories anyway; else the index reads them.
    """

    def __init__(self, store: RunStore, history_of: Callable[[Run], RunHistory] | None = None) -> None:
        self._store = store
        self._history_of = history_of or self._follow
        self._path = store.home.cache / "runs" / f"{store.owner}.json"
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._remembered: dict[str, _Remembered] | None = None  # None until the cache was read
        self._seen: set[str] = set()  # runs that were read before
        self._has_news = False  # what the cache does not know yet
        self._followed: dict[str, HistoryReader] = {}  # of runs that have not ended
        self._sizes: dict[str, tuple[int, int]] = {}  # of the same: checkpoints when it was measured, bytes

    def summaries(self) -> list[RunSummary]:
        """All rows, newest first."""
        return self.glance(patience_seconds=math.inf).rows

    def glance(self, patience_seconds: float) -> Glance:
        """Return all rows that were read before, and as many more as can be read in that time, newest first."""
        spent_seconds = 0.0
        with self._reading:
            if self._remembered is None:
                self._remembered = self._read_cache()
            remembered = self._remembered
            runs = self._store.list()
            rows = []
            unread = 0
            for run in runs:
                stamp = _stamp_of(run)
                known = remembered.get(run.id)
                if known is not None and known.stamp == stamp:
                    rows.append(known.summary)
                    continue
                is_new = run.id not in self._seen
                if is_new and spent_seconds > patience_seconds:
                    unread += 1
                    continue
                began = time.monotonic()
                summary = self._draw_up(run)
                if is_new:
                    spent_seconds += time.monotonic() - began
                    self._seen.add(run.id)
                rows.append(summary)
                if summary.state in FINAL_STATES:
                    remembered[run.id] = _Remembered(stamp=stamp, summary=summary)
                    self._has_news = True
            if not unread and (self._has_news or len(remembered) > len(runs)):
                self._write_cache({run.id for run in runs})
                self._has_news = False
            return Glance(rows, unread)

    def summary(self, run: Run) -> RunSummary:
        """The row of one run, from what is remembered where that still holds."""
        with self._reading:
            if self._remembered is None:
                self._remembered = self._read_cache()
            known = self._remembered.get(run.id)
            return known.summary if known is not None and known.stamp == _stamp_of(run) else self._draw_up(run)

    def _draw_up(self, run: Run) -> RunSummary:
        history = self._history_of(run)
        checkpoints = len(history.checkpoints)
        measured = self._sizes.get(run.id)
        if measured is None or measured[0] != checkpoints or run.folder.read_state().is_final:
            measured = (checkpoints, folder_size_bytes(run.folder.path))
            self._sizes[run.id] = measured
        summary = summarize(run, history, measured[1])
        if summary.state in FINAL_STATES:
            self._followed.pop(run.id, None)
            self._sizes.pop(run.id, None)
        return summary

    def _follow(self, run: Run) -> RunHistory:
        return self._followed.setdefault(run.id, HistoryReader.of_run(run)).update()

    def _read_cache(self) -> dict[str, _Remembered]:
        try:
            index = _IndexFile.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return {}
        return index.runs if index.version == _INDEX_VERSION else {}

    def _write_cache(self, existing: set[str]) -> None:
        assert self._remembered is not None
        self._remembered = {run_id: known for run_id, known in self._remembered.items() if run_id in existing}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, _IndexFile(version=_INDEX_VERSION, runs=self._remembered).model_dump_json())
        except (OSError, StorageError):
            return  # a cache that cannot be written costs time, not truth


def _stamp_of(run: Run) -> Stamp:
    # Three looks at each of thousands of runs: plain strings take a third of the time of paths.
    folder = os.fspath(run.folder.path)
    state, notes, events = (_look(f"{folder}/{name}") for name in (STATE_FILE, NOTES_FILE, EVENTS_FILE))
    return Stamp(
        state_modified=0 if state is None else state.st_mtime_ns,
        notes_modified=0 if notes is None else notes.st_mtime_ns,
        events_bytes=0 if events is None else events.st_size,
    )


def _look(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - see above
    except OSError:
        return None

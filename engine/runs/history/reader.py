"""Read the history of a run from its log."""

import itertools
import threading
from pathlib import Path

import numpy as np

from engine.config.objectives import METRICS
from engine.runs.history.events import Event, StepData, parse_event
from engine.runs.history.log import read_lines
from engine.runs.history.run_history import HistoryFacts, RunHistory
from engine.runs.history.steps import (
    GrowingColumns,
    StepSeries,
    looks_like_step,
    metrics_of,
    row_of,
    rows_of_plain_steps,
)

_CHUNK_BYTES = 1_000_000


class HistoryReader:
    """Follows the log of one run; each `update` reads only new events, or the whole log if it was replaced.

    `resumed` supersedes the later steps, evaluations and checkpoints of earlier attempts, and so does an attempt that
    restarts without one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        self._facts = HistoryFacts()
        self._columns, self._metrics = GrowingColumns(), GrowingColumns(1 + len(METRICS))
        self._ends = (b"", b"")  # the first line and the last one of what was read
        self._history = self._snapshot()

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

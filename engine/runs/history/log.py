"""The append-only event log: a worker writes it, everything else reads it from a byte offset."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ValidationError

from loratory.engine.errors import StorageError, explain_os_errors
from loratory.engine.files import fsync_folder, write_atomically
from loratory.engine.runs.history.events import Event, EventData, FailedData, parse_event

_TAIL_BYTES = 65_536
_CANNOT_WRITE = "events.jsonl cannot be written", "Free some space, or check the folder's permissions."


class EventBatch(NamedTuple):
    """New events, and the offset of the next read."""

    events: tuple[Event, ...]
    next_offset: int  # byte after the last complete line


class EventWriter:
    """Appends events to the log of a run; the worker has exactly one.

    A torn last line, left by a power cut, is removed on opening; `seq` continues from the last event of earlier attempts.
    Every line is handed to the kernel in one write, so the death of the process never tears one.

    Args:
        attempt: From 1; see `RunFolder.next_attempt`.
        require_current: Raises if another worker has the log by now; called before each event.

    Raises:
        StorageError: If the log cannot be opened.
    """

    def __init__(self, path: Path, attempt: int, require_current: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._attempt = attempt
        self._require_current = require_current
        self._writing = threading.Lock()  # guards all below: several threads may report
        self._seq = 0
        self._size = 0
        self._is_current = False  # whether `_seq` and `_size` are those of the file
        with explain_os_errors(*_CANNOT_WRITE):
            is_new = not path.exists()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(path, flags, 0o600)
            if is_new:
                fsync_folder(path.parent)
        self._repair()

    def append(self, data: EventData) -> Event:
        """Write one event; it is on the disk when this returns, except for steps and memory, which may wait.

        A signal handler may raise at any point within: the event is then whole in the log or not in it at all.

        Raises:
            StorageError: If the disk is full or fails; the log then ends with the last complete event, and the same
                event may be appended again.
            SupersededError: If another worker has the log.
        """
        with self._writing:
            self._require_current()
            if not self._is_current:
                self._repair()
            event = Event.wrap(data, seq=self._seq + 1, attempt=self._attempt, time=time.time())
            line = event.model_dump_json().encode() + b"\n"
            self._is_current = False  # however this block ends early
            with explain_os_errors(*_CANNOT_WRITE):
                try:
                    rest = line
                    while rest:  # a second round only where the disk became full in the middle of the line
                        rest = rest[os.write(self._descriptor, rest) :]
                    if not data.may_be_lost:
                        os.fsync(self._descriptor)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._descriptor, self._size)
                        self._is_current = True
                    raise
            self._seq += 1
            self._size += len(line)
            self._is_current = True
        return event

    def _repair(self) -> None:
        """Truncate the log after its last complete line, and continue its numbers.

        Raises:
            StorageError: If that fails.
        """
        with explain_os_errors(*_CANNOT_WRITE):
            size = self._path.read_bytes().rfind(b"\n") + 1
            os.truncate(self._path, size)
            last = last_event(self._path)
        self._size = size
        self._seq = last.seq if last is not None else 0
        self._is_current = True

    def close(self) -> None:
        """Write the last steps to the disk and close the log."""
        with self._writing:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: Path, offset: int = 0) -> EventBatch:
    """Read the events at or after `offset`: 0, or `next_offset` of an earlier batch.

    A missing log holds nothing yet. Lines that are not an event of a known kind are skipped.
    """
    lines, next_offset = read_lines(path, offset)
    return EventBatch(tuple(event for event in map(parse_event, lines) if event is not None), next_offset)


class LineBatch(NamedTuple):
    """Complete lines without their ends, and the offset of the next read."""

    lines: list[bytes]
    next_offset: int


def read_lines(path: Path, offset: int = 0, max_bytes: int | None = None) -> LineBatch:
    """Return the complete raw lines at or after `offset`; a half-written last line is left for the next read.

    About `max_bytes` are read at most, and always at least one line; None reads to the end.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            chunk = file.read() if max_bytes is None else file.read(max_bytes)
            if max_bytes is not None and chunk and b"\n" not in chunk:
                chunk += file.readline()
    except (FileNotFoundError, IsADirectoryError):
        return LineBatch([], offset)
    end = chunk.rfind(b"\n") + 1
    return LineBatch(chunk[:end].split(b"\n")[:-1], offset + end)


def last_event(path: Path) -> Event | None:
    """Return the last complete event, found from the end of the log; None where there is none."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for length in (min(size, _TAIL_BYTES), size):
            file.seek(size - length)
            complete = file.read(length).split(b"\n")[:-1]
            # The first line of the tail is whole only where the tail is the whole file.
            for line in reversed(complete if length == size else complete[1:]):
                event = parse_event(line)
                if event is not None:
                    return event
    return None


_NAME = "failed-process-{}.json"  # counted from 1, as people count


class _FailureRecord(BaseModel):
    attempt: int  # that the supervisor named; 0 without one
    failed: FailedData


def note_failure(run: Path, rank: int, attempt: int, failed: FailedData) -> None:
    """Record the failure of a process that is not the first; if the disk is full, the log has it."""
    record = _FailureRecord(attempt=attempt, failed=failed)
    with contextlib.suppress(StorageError, OSError):
        write_atomically(run / _NAME.format(rank + 1), record.model_dump_json())


def noted_failure(run: Path, attempt: int) -> FailedData | None:
    """Return the failure of the first process that failed in an attempt; None if there is none of this attempt."""
    # A process that loses its peer fails too, a moment later.
    own = [(when, record.failed) for when, _, record in _noted_failures(run) if record.attempt in (0, attempt)]
    return min(own, key=lambda failure: failure[0])[1] if own else None


def forget_failures(run: Path, attempt: int) -> None:
    """Delete the failures of other attempts; in this one, another process may have failed before the first began."""
    for _, path, record in _noted_failures(run):
        if record.attempt != attempt:
            path.unlink(missing_ok=True)


def _noted_failures(run: Path) -> Iterator[tuple[float, Path, _FailureRecord]]:
    for path in run.glob(_NAME.format("*")):
        with contextlib.suppress(OSError, ValidationError):
            yield path.stat().st_mtime, path, _FailureRecord.model_validate_json(path.read_bytes())

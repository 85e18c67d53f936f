"""The log of a set: one operation a line, added at its end and never changed; which are in force, and the versions they make."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from loratory.engine.data.workshop.operations import Operation, Replace, RowRanges, Undo, shared_rows
from loratory.engine.errors import DatasetError
from loratory.engine.files import write_atomically
from loratory.engine.processes.liveness import FileLock

_VERSION_DIGITS = 12


class LogEntry(BaseModel):
    """One operation, with who added it and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int  # its line
    parent: int  # the last operation that its author had seen; 0 for none
    author: str
    time: float  # seconds since the epoch
    operation: Operation


class Version(NamedTuple):
    """The rows of a set after some of its operations."""

    name: str
    last: int  # operation of the log; 0 for the untouched source
    author: str = ""  # of that operation
    time: float = 0.0


def _standing(entries: Sequence[LogEntry]) -> list[LogEntry]:
    undone: set[int] = set()
    kept = []
    for entry in reversed(entries):
        if entry.id not in undone:
            kept.append(entry)
            undone.update([entry.operation.id] if isinstance(entry.operation, Undo) else ())
    return kept[::-1]


def in_force(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Return the operations that are not undone, in order, without the undos."""
    return [entry for entry in _standing(entries) if not isinstance(entry.operation, Undo)]


def versions_of(fingerprint: str, entries: Sequence[LogEntry]) -> list[Version]:
    """Return the versions that a log went through, oldest first; a name comes again where undoing leads back to its rows.

    It is a hash of the source and the operations in force that change rows. Flags and notes make no version.
    """
    contents = [e.operation.model_dump_json().encode() + b"\n" if e.operation.changes_rows else b"" for e in entries]
    source = hashlib.sha256(fingerprint.encode())
    digest = source.copy()
    versions = [Version(digest.hexdigest()[:_VERSION_DIGITS], 0)]
    for entry in entries:
        is_undo = isinstance(entry.operation, Undo)
        digest = source.copy() if is_undo else digest
        for kept in in_force(entries[: entry.id]) if is_undo else (entry,):
            digest.update(contents[kept.id - 1])
        if (name := digest.hexdigest()[:_VERSION_DIGITS]) != versions[-1].name:
            versions.append(Version(name, entry.id, entry.author, entry.time))
    return versions


def read_log(path: Path) -> tuple[list[LogEntry], bytes]:
    """Return the operations of a log, and what was not written to the end of its line, which counts for nothing.

    Raises:
        DatasetError: If a line was changed by hand.
        OSError: If it cannot be read.
    """
    *lines, tail = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(LogEntry.model_validate_json(line))
            why = f"it has the id {entries[-1].id}" if entries[-1].id != number else ""
        except ValidationError as error:
            why = reason(error)
        if why:
            what = (
                f"Line {number:,} of {path.name} of the set {path.parent.name} is not its operation {number:,}: {why}."
            )
            raise DatasetError(what, "Put the line back as it was; nothing but Loratory may write there.")
    return entries, tail


def append_operations(
    path: Path, operations: Sequence[Operation], *, seen: int | None, author: str, rows: int
) -> list[LogEntry]:
    """Add operations to a log, all or none.

    Args:
        path: The log.
        operations: What to add, in order.
        seen: The last operation that the author had seen; None for all that are there.
        author: Who adds them.
        rows: How many rows the source has.

    Raises:
        DatasetError: If one of them cannot work, or one that the author had not seen touches the same rows.
        StorageError: If they cannot be written; the log is then as it was.
    """
    with FileLock(path.with_suffix(".lock"), makes_folder=False):
        entries, _ = read_log(path)
        before = len(entries)
        parent = before if seen is None else seen
        for number, operation in enumerate(operations, 1):
            if why := _problem(operation, entries, rows) or _conflict(operation, entries[:before], parent):
                what = f"Operation {number:,} of {len(operations):,} ({operation.kind}) is refused: {why}."
                raise DatasetError(what, "Nothing was changed; correct it, then try again.")
            entry = LogEntry(id=len(entries) + 1, parent=parent, author=author, time=time.time(), operation=operation)
            entries.append(entry)
        write_atomically(path, b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries))
    return entries[before:]


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong with an operation."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*map(str, problem["loc"][-1:]), problem["msg"].removeprefix("Value error, ")])


def _touched(operation: Operation, entries: Sequence[LogEntry]) -> RowRanges:
    """Return the rows that an operation is about: of an undo, those of what it undoes."""
    while isinstance(operation, Undo) and operation.id <= len(entries):
        operation = entries[operation.id - 1].operation
    return operation.touched


def _problem(operation: Operation, entries: Sequence[LogEntry], rows: int) -> str | None:
    """Return why an operation cannot be added behind these."""
    if not isinstance(operation, Undo):
        last = 0 if isinstance(operation, Replace) else operation.touched[-1][1]
        return f"row {last:,} does not exist; the set has {rows:,}" if last > rows else None
    standing = _standing(entries)
    if all(entry.id != operation.id for entry in standing):
        return f"there is no operation {operation.id} that is not undone already; the last one is {len(entries)}"
    target = entries[operation.id - 1].operation
    for entry in standing[::-1]:
        builds_on_it = entry.id > operation.id and target.kind in entry.operation.builds_on
        if builds_on_it and (shared := shared_rows(entry.operation.touched, target.touched)):
            return f"operation {entry.id} builds on it in row {shared}; undo that one first"
    return None


def _conflict(operation: Operation, entries: Sequence[LogEntry], seen: int) -> str | None:
    """Return which operations that the author had not seen touch the same rows."""
    if not 0 <= seen <= len(entries):
        return f"its author had seen operation {seen}, and the last one is {len(entries)}"
    own = _touched(operation, entries)
    clashes = [entry for entry in entries[seen:] if shared_rows(own, _touched(entry.operation, entries))]
    names = ", ".join(f"operation {entry.id} ({entry.operation.kind}, by {entry.author})" for entry in clashes[:5])
    return f"{names} came in between and has some of the same rows; look at them, then try again" if names else None

"""The log of a set: one operation a line, added at its end and never changed; which are in force, and the versions they make."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from loratory.engine.data.workshop.operations import (
    BUILDS_ON,
    Edit,
    Operation,
    Remark,
    Replace,
    RowRanges,
    Undo,
    shared_rows,
)
from loratory.engine.errors import DatasetError
from loratory.engine.files import write_atomically
from loratory.engine.processes.liveness import FileLock

_VERSION_DIGITS = 12
_EVERY_ROW = ((0, 10**16),)


class LogEntry(BaseModel, frozen=True, extra="forbid"):
    """One operation, with who added it and when."""

    id: int  # its line
    parent: int  # the last operation that its author knew; 0 for none
    author: str
    time: datetime
    operation: Operation


class Version(NamedTuple):
    """The rows of a set after some of its operations."""

    name: str
    last: int  # operation of the log; 0 for the untouched source


def _without_undone(entries: Sequence[LogEntry]) -> list[LogEntry]:
    undone: set[int] = set()
    left = []
    for entry in reversed(entries):
        if entry.id not in undone:
            left.append(entry)
            undone.update([entry.operation.id] if isinstance(entry.operation, Undo) else ())
    return left[::-1]


def in_force(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Return the operations that are not undone, in order, without the undos."""
    return [entry for entry in _without_undone(entries) if not isinstance(entry.operation, Undo)]


def versions_of(fingerprint: str, entries: Sequence[LogEntry]) -> list[Version]:
    """Return the versions that a log went through, oldest first; a name comes again where undoing leads back to its rows.

    It is a hash of the source and the operations in force, but for remarks.
    """
    contents = [b"" if isinstance(e.operation, Remark) else e.operation.model_dump_json().encode() for e in entries]
    source = hashlib.sha256(fingerprint.encode())
    digest, versions = source.copy(), [Version(source.hexdigest()[:_VERSION_DIGITS], 0)]
    for entry in entries:
        is_undo = isinstance(entry.operation, Undo)
        digest = source.copy() if is_undo else digest
        for other in in_force(entries[: entry.id]) if is_undo else (entry,):
            digest.update(contents[other.id - 1])
        if (name := digest.hexdigest()[:_VERSION_DIGITS]) != versions[-1].name:
            versions.append(Version(name, entry.id))
    return versions


def read_log(path: Path) -> tuple[list[LogEntry], bytes]:
    """Return the operations of a log, and what was not written to the end of its line, which counts for nothing.

    A line that was changed by hand is a DatasetError.
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
    path: Path, operations: Sequence[Operation], *, since: int | None, author: str, rows: int
) -> list[LogEntry]:
    """Add operations to the log of a set with so many rows, all or none.

    `since` is the last operation that the author knew; None for the last one.

    Raises:
        DatasetError: If one of them cannot work, or one that the author did not know is about the same rows.
        StorageError: If they cannot be written; the log is then as it was.
    """
    with FileLock(path.with_suffix(".lock"), makes_folder=False):
        entries, _ = read_log(path)
        before = len(entries)
        parent = before if since is None else since
        for number, operation in enumerate(operations, 1):
            if why := _problem(operation, entries, rows) or _conflict(operation, entries, range(parent, before)):
                what = f"Operation {number:,} of {len(operations):,} ({operation.kind}) is refused: {why}."
                raise DatasetError(what, "Nothing was changed; correct it, then try again.")
            entry = LogEntry(
                id=len(entries) + 1, parent=parent, author=author, time=datetime.now(UTC), operation=operation
            )
            entries.append(entry)
        write_atomically(path, b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries))
    return entries[before:]


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong with an operation."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*map(str, problem["loc"][-1:]), problem["msg"].removeprefix("Value error, ")])


def rows_of(operation: Operation, entries: Sequence[LogEntry]) -> RowRanges:
    """Return the rows that an operation is about: of an undo, those of what it undoes."""
    while isinstance(operation, Undo):
        operation = entries[operation.id - 1].operation
    if isinstance(operation, Edit):
        return ((operation.row - 1, operation.row),)
    return _EVERY_ROW if isinstance(operation, Replace) else operation.rows


def _problem(operation: Operation, entries: Sequence[LogEntry], rows: int) -> str | None:
    """Return why an operation cannot be added behind these."""
    if not isinstance(operation, Undo):
        last = 0 if isinstance(operation, Replace) else rows_of(operation, entries)[-1][1]
        return f"row {last:,} does not exist; the set has {rows:,}" if last > rows else None
    left = _without_undone(entries)
    if all(entry.id != operation.id for entry in left):
        return f"there is no operation {operation.id} that is not undone already; the last one is {len(entries)}"
    target = entries[operation.id - 1].operation
    for entry in left[::-1]:
        builds_on_it = entry.id > operation.id and target.kind in BUILDS_ON.get(entry.operation.kind, ())
        if builds_on_it and (rows_text := shared_rows(rows_of(entry.operation, entries), rows_of(target, entries))):
            return f"operation {entry.id} builds on it in row {rows_text}; undo that one first"
    return None


def _conflict(operation: Operation, entries: Sequence[LogEntry], unknown: range) -> str | None:
    """Return which operations that the author did not know are about the same rows."""
    if not 0 <= unknown.start <= unknown.stop:
        return f"its author names operation {unknown.start}, and the last one is {unknown.stop}"
    own = rows_of(operation, entries) if unknown else ()
    clashes = [entries[at] for at in unknown if shared_rows(own, rows_of(entries[at].operation, entries))]
    names = ", ".join(f"operation {entry.id} ({entry.operation.kind}, by {entry.author})" for entry in clashes[:5])
    return f"{names} came in between and has some of the same rows; look at them, then try again" if names else None

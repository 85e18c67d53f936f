"""The sets of one person: their logs of operations, the versions that these make, and where they lie.

A set is a folder with `set.yaml`, `source/` with the copy of a file, and `log.jsonl`, to which operations are only added, one a line.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.operations import (
    BUILDS_ON,
    REMARKS,
    Edit,
    Operation,
    Replace,
    Rows,
    Undo,
    shared_rows,
)
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")
FACTS, LOG, SOURCE = "set.yaml", "log.jsonl", "source"  # in the folder of a set
_VERSION_DIGITS = 12


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


def in_force(entries: Sequence[LogEntry], *, with_undos: bool = False) -> list[LogEntry]:
    """Return the operations that are not undone, in order."""
    undone: set[int] = set()
    for entry in reversed(entries):
        if isinstance(entry.operation, Undo) and entry.id not in undone:
            undone.add(entry.operation.id)
    return [e for e in entries if e.id not in undone and (with_undos or not isinstance(e.operation, Undo))]


def versions_of(fingerprint: str, entries: Sequence[LogEntry]) -> list[Version]:
    """Return the versions that a log went through, oldest first: hashes of the source and the operations in force."""
    contents = [b"" if e.operation.kind in REMARKS else e.operation.model_dump_json().encode() for e in entries]
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


def _read_log(path: Path) -> tuple[list[LogEntry], bytes]:
    """Return the operations of a log, and what was not written to the end of its line, which counts for nothing."""
    *lines, tail = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(LogEntry.model_validate_json(line))
            why = f"it has the id {entries[-1].id}" if entries[-1].id != number else ""
        except ValidationError as error:
            why = reason(error)
        if why:
            what = f"Line {number:,} of the log of the set {path.parent.name} is not its operation {number:,}: {why}."
            raise DatasetError(what, "Put the line back as it was; nothing but Loratory may write there.")
    return entries, tail


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong with an operation."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*map(str, problem["loc"][-1:]), problem["msg"].removeprefix("Value error, ")])


def rows_of(operation: Operation, entries: Sequence[LogEntry]) -> Rows:
    """Return the rows that an operation is about: of an undo, those of what it undoes."""
    while isinstance(operation, Undo):
        operation = entries[operation.id - 1].operation
    if isinstance(operation, Edit):
        return ((operation.row - 1, operation.row),)
    return ((0, 10**16),) if isinstance(operation, Replace) else operation.rows


def _problem(operation: Operation, entries: Sequence[LogEntry], rows: int) -> str | None:
    """Return why an operation cannot be added behind these."""
    if not isinstance(operation, Undo):
        last = 0 if isinstance(operation, Replace) else rows_of(operation, entries)[-1][1]
        return f"row {last:,} does not exist; the set has {rows:,}" if last > rows else None
    left = in_force(entries, with_undos=True)
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


class SetFacts(BaseModel, frozen=True, extra="forbid"):
    """What a set was made from; written once."""

    dataset: DatasetConfig  # the source as it was named, with its format and columns; of the Hub at a commit
    fingerprint: str  # sha256 of the copy, or of what names the rows on the Hub
    rows: int
    copied_bytes: int | None  # None where the rows stay on the Hub
    author: str
    created: datetime


class DataSet:
    """One set with its operations, as they are when it is opened; one that is damaged is a DatasetError."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.log = folder, folder.name, folder / LOG
        try:
            self.facts = SetFacts.model_validate(yaml.safe_load((folder / FACTS).read_bytes()))
            self.entries, cut = _read_log(self.log)
        except (OSError, ValueError, yaml.YAMLError) as error:
            what = f"The set {self.name} cannot be read ({one_line(str(error), 200)})."
            raise DatasetError(what, "Put its folder back as it was, or remove it.") from error
        note = f"The last {len(cut):,} bytes of the set's log were not written to their end, and count for nothing."
        self.notes = [note] if cut else []
        self.versions = versions_of(self.facts.fingerprint, self.entries)  # the last one is the newest

    def append(self, operations: Sequence[Operation], *, since: int | None, author: str) -> list[LogEntry]:
        """Add operations, all or none; `since` is the last one that the author knew, None for the last one there is."""
        with FileLock(self.log.with_name("lock"), makes_folder=False):
            entries, _ = _read_log(self.log)
            before, now = len(entries), datetime.now(UTC)
            unknown = range(before if since is None else since, before)
            for number, operation in enumerate(operations, 1):
                if why := _problem(operation, entries, self.facts.rows) or _conflict(operation, entries, unknown):
                    what = f"Operation {number:,} of {len(operations):,} ({operation.kind}) is refused: {why}."
                    raise DatasetError(what, "Nothing was changed; correct it, then try again.")
                entries.append(
                    LogEntry(id=len(entries) + 1, parent=unknown.start, author=author, time=now, operation=operation)
                )
            write_atomically(self.log, (entry.model_dump_json().encode() + b"\n" for entry in entries))
        return entries[before:]

    def delete(self) -> None:
        """Remove the set with its source and log, or raise a StorageError."""
        try:
            shutil.rmtree(self.folder.rename(self.folder.with_name(f".deleted-{self.name}-{os.getpid()}")))
        except OSError as error:
            what = f"The set {self.name} cannot be removed ({error.strerror})."
            raise StorageError(what, "Check the permissions of its folder.") from error


def set_names(home: LoratoryHome) -> list[str]:
    """Return the names of a person's sets, among which names are looked up; a guest of a lab has none."""
    paths = [path.parent for path in home.datasets.glob(f"*/{FACTS}")] if not home.is_guest else []
    return sorted(path.name for path in paths if NAME.fullmatch(path.name) and not path.is_symlink())


def find_set(home: LoratoryHome, name: str) -> DataSet:
    """Return a person's set; none of that name is a DatasetError."""
    if name not in set_names(home):
        what = f"There is no set {shown_name(name, 40)!r}."
        raise DatasetError(what, "`loratory data list` shows the sets; `loratory data add` makes one.")
    return DataSet(home.datasets / name)


def find_version(home: LoratoryHome, source: str) -> tuple[DataSet, Version]:
    """Return what NAME@VERSION, NAME or the same after set: means; what is not there is a DatasetError."""
    name, at, text = source.strip().removeprefix(SET_PREFIX).partition("@")
    dataset = find_set(home, name)
    for version in reversed(dataset.versions):
        if not at or version.name == text:
            return dataset, version
    what = f"The set {name} has no version {shown_name(text, 40)}; the newest is {dataset.versions[-1].name}."
    raise DatasetError(what, f"`loratory data versions {name}` lists them.")


def pinned(source: str, home: LoratoryHome) -> str:
    """Return the name of a dataset with the version that it means now, if it is a set; raises as `find_version` does."""
    if not source.strip().startswith(SET_PREFIX):
        return source
    dataset, version = find_version(home, source)
    return f"{SET_PREFIX}{dataset.name}@{version.name}"

"""The sets of one person: their logs of operations, the versions that these make, and where they lie.

A set is a folder with `set.json`, `source/` with the copy of a file, and `log.jsonl`, to which operations are only added, one a line.
"""

import copy
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ValidationError

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.records import MAX_ROW_BYTES, Record, one_line
from loratory.engine.data.workshop.operations import REMARKS, Edit, Operation, Replace, RowRanges, Undo, shared_rows
from loratory.engine.errors import DatasetError, StorageError, explain_os_errors
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.processes.messages import JsonObject

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")
FACTS, LOG, SOURCE = "set.json", "log.jsonl", "source"  # in the folder of a set
_LOCK, _FORMER = "lock", "former-names"  # there as well; the names of a set before it was renamed, one a line
MAX_COLUMNS = 1000
_VERSION_DIGITS = 12


class LogEntry(BaseModel, frozen=True, extra="forbid"):
    """One operation, with who added it and when."""

    id: int  # its line
    author: str
    time: datetime
    operation: Operation


class Version(NamedTuple):
    """The rows of a set after some of its operations."""

    name: str
    last: int  # operation of the log; 0 for the untouched source


def in_force(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Return the operations that are not undone, in order."""
    undone: set[int] = set()
    for entry in reversed(entries):
        if isinstance(entry.operation, Undo) and entry.id not in undone:
            undone.add(entry.operation.id)
    return [entry for entry in entries if entry.id not in undone]


def versions_of(fingerprint: str, entries: Sequence[LogEntry]) -> list[Version]:
    """Return the versions that a log went through, oldest first: hashes of the source and the operations in force."""
    contents = [entry.operation.content() for entry in entries]
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


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong with an operation."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*map(str, problem["loc"][-1:]), problem["msg"].removeprefix("Value error, ")])


class SetFacts(BaseModel, frozen=True, extra="forbid"):
    """What a set was made from; written once."""

    dataset: DatasetConfig  # the source as it was named, with its format and columns; of the Hub at a commit
    fingerprint: str  # sha256 of the copy, or of what names the rows on the Hub
    rows: int
    columns: tuple[str, ...]  # of all rows; none where there are more than MAX_COLUMNS
    copied_bytes: int | None  # None where the rows stay on the Hub
    author: str
    created: datetime


def rows_of(operation: Operation, entries: Sequence[LogEntry]) -> RowRanges:
    """Return the rows that an operation is about: of an undo, those of what it undoes."""
    while isinstance(operation, Undo):
        operation = entries[operation.id - 1].operation
    if isinstance(operation, Edit):
        return ((operation.row - 1, operation.row),)
    return ((0, 10**16),) if isinstance(operation, Replace) else operation.rows


def _misfits(operation: Operation, entries: Sequence[LogEntry], facts: SetFacts) -> Iterator[str]:
    """Yield why an operation is not one of this set."""
    if isinstance(operation, Undo) and operation.id > len(entries):
        yield f"operation {operation.id} does not come before it"
    elif not isinstance(operation, Undo | Replace) and (last := rows_of(operation, entries)[-1][1]) > facts.rows:
        yield f"row {last:,} does not exist; the set has {facts.rows:,}"
    if isinstance(operation, Edit) and Record(0, None, operation.record).size_bytes > MAX_ROW_BYTES:
        yield f"the row has more than {MAX_ROW_BYTES:,} bytes"


def _problems(operation: Operation, entries: Sequence[LogEntry], facts: SetFacts, unknown: range) -> Iterator[str]:
    """Yield why an operation cannot be added behind these, of which its author does not know some."""
    yield from _misfits(operation, entries, facts)
    if isinstance(operation, Replace) and facts.columns:
        edits = (entry.operation.record for entry in entries if isinstance(entry.operation, Edit))
        columns = dict.fromkeys(chain(facts.columns, *edits))
        for name in [name for name in operation.columns if name not in columns]:
            yield f"no row has the column {one_line(name)!r}; the columns are {one_line(', '.join(columns), 300)}"
    if isinstance(operation, Undo) and entries[operation.id - 1] not in in_force(entries):
        yield f"operation {operation.id} is undone already"
    for entry in (entries[at] for at in unknown):
        is_remark = {entry.operation.kind, operation.kind}.intersection(REMARKS)
        if not is_remark and shared_rows(rows_of(operation, entries), rows_of(entry.operation, entries)):
            who = f"operation {entry.id} ({entry.operation.kind}, by {entry.author})"
            yield f"{who} came in between and has some of the same rows; look at it, then try again"


class DataSet:
    """One set with its operations, as they are when it is opened; one that is damaged is a DatasetError."""

    def __init__(self, home: LoratoryHome, folder: Path) -> None:
        self.home, self.folder, self.name, self.log = home, folder, folder.name, folder / LOG
        try:
            self.facts = SetFacts.model_validate_json((folder / FACTS).read_bytes())
            self.entries = self._read_log()
        except (OSError, ValueError) as error:
            what = f"The set {self.name} cannot be read ({one_line(str(error), 200)})."
            raise DatasetError(what, "Put its folder back as it was, or delete the set.") from error
        self.versions = versions_of(self.facts.fingerprint, self.entries)  # the last one is the newest

    def at(self, version: str) -> Self:
        """Return the set as it was at a version, as it is for an empty name; none of that name is a DatasetError."""
        last = (dict(self.versions) | {"": len(self.entries)}).get(version)
        if last is None:
            what = f"{self.name} has no version {shown_name(version, 40)}; the newest is {self.versions[-1].name}."
            raise DatasetError(what, f"`loratory data show {self.name}` lists them.")
        earlier = copy.copy(self)
        earlier.entries, earlier.versions = self.entries[:last], [v for v in self.versions if v.last <= last]
        return earlier

    def history(self) -> list[JsonObject]:
        """Return the source and the operations on it, oldest first, with the version that each made; without contents of rows."""
        left, versions = {0}.union(e.id for e in in_force(self.entries)), {last: name for name, last in self.versions}
        source = {"id": 0, "author": self.facts.author, "time": self.facts.created.isoformat(), "operation": None}
        contents: Any = {"operation": {"record", "values"}}
        steps = [source, *(entry.model_dump(mode="json", exclude=contents) for entry in self.entries)]
        return [{**s, "version": versions.get(s["id"], ""), "is_undone": s["id"] not in left} for s in steps]

    def copy(self) -> Path | None:
        """Return the copy of the source, None where the rows are on the Hub; one that has changed is a DatasetError."""
        if self.facts.copied_bytes is None:
            return None
        paths = list((self.folder / SOURCE).glob("*"))
        sizes = [path.stat().st_size for path in paths]
        if sizes != [self.facts.copied_bytes]:
            what = f"The copy in the set {self.name} has {sum(sizes):,} bytes; it had {self.facts.copied_bytes:,}."
            raise DatasetError(what, "Put the file back as it was, or delete the set.")
        return paths[0]

    def _read_log(self) -> list[LogEntry]:
        entries: list[LogEntry] = []
        for number, line in enumerate(self.log.read_bytes().splitlines(), 1):
            try:
                entry = LogEntry.model_validate_json(line)
                misfits = _misfits(entry.operation, entries, self.facts)
                why = next(misfits, "") if entry.id == number else f"it has the id {entry.id}"
                entries.append(entry)
            except ValidationError as error:
                why = reason(error)
            if why:
                what = f"Line {number:,} of the log of the set {self.name} is not its operation {number:,}: {why}."
                raise DatasetError(what, "Put the line back as it was; nothing but Loratory may write there.")
        return entries

    def append(self, operations: Sequence[Operation], *, since: int | None, author: str) -> list[LogEntry]:
        """Add operations, all or none; `since` is the last one that the author knew, None for the last one there is."""
        try:
            with FileLock(self.folder / _LOCK, makes_folder=False):
                entries = self._read_log()
                before, now = len(entries), datetime.now(UTC)
                unknown = range(before if since is None else since, before)
                for number, operation in enumerate(operations, 1):
                    if why := next(_problems(operation, entries, self.facts, unknown), ""):
                        what = f"Operation {number:,} of {len(operations):,} ({operation.kind}) is refused: {why}."
                        raise DatasetError(what, "Nothing was changed; correct it, then try again.")
                    entries.append(LogEntry(id=len(entries) + 1, author=author, time=now, operation=operation))
                write_atomically(self.log, (entry.model_dump_json().encode() + b"\n" for entry in entries))
            return entries[before:]
        except (OSError, StorageError):
            if self.log.exists():
                raise
        return find_set(self.home, self.name).append(operations, since=since, author=author)  # it was renamed meanwhile


def set_names(home: LoratoryHome) -> list[str]:
    """Return the names of a person's sets, among which names are looked up; a guest of a lab has none."""
    names = {path.parent for part in (FACTS, LOG) for path in home.datasets.glob(f"*/{part}") if not home.is_guest}
    return sorted(path.name for path in names if NAME.fullmatch(path.name) and not path.is_symlink())


def former_names(home: LoratoryHome) -> dict[str, str]:
    """Return the names that sets had before they were renamed, with what each is called now."""
    files = [(name, home.datasets / name / _FORMER) for name in set_names(home)]
    return {former: name for name, file in files if file.is_file() for former in file.read_text().split()}


def set_folder(home: LoratoryHome, name: str) -> Path:
    """Return the folder of the set that has this name or had it, also of a damaged one; none is a DatasetError."""
    if name in set_names(home):
        return home.datasets / name
    with _moving(home):  # while a set moves, it may be found under neither name
        now = name if name in set_names(home) else former_names(home).get(name)
    if now is None:
        what = f"The set {shown_name(name, 40)!r} does not exist."
        raise DatasetError(what, "`loratory data list` shows the sets; `loratory data add` makes one.")
    return home.datasets / now


def find_set(home: LoratoryHome, name: str) -> DataSet:
    """Return a person's set; none of that name, or a damaged one, is a DatasetError."""
    folder = set_folder(home, name)
    try:
        return DataSet(home, folder)
    except DatasetError:
        if folder.exists():
            raise
    return find_set(home, name)  # it was renamed meanwhile


def describe(home: LoratoryHome, name: str) -> JsonObject:
    """Return a set as lists show it, a damaged one with its problem."""
    try:
        dataset = find_set(home, name)
    except DatasetError as error:
        return {"name": name, "problem": error.what}
    facts = dataset.facts
    return {
        "name": name, "rows": facts.rows, "bytes": facts.copied_bytes, "version": dataset.versions[-1].name,
        "operations": len(dataset.entries), "changed": dataset.history()[-1]["time"],
        "made_of": PurePath(facts.dataset.source).name,
    }  # fmt: skip


def require_new_name(home: LoratoryHome, name: str, now: str = "") -> None:
    """Raise a DatasetError where a new set, or the one that is called `now`, cannot get a name."""
    if NAME.fullmatch(name) is None:
        what = f"{shown_name(name, 40)!r} cannot be the name of a set."
        raise DatasetError(what, "Use up to 61 small letters, digits, dots, - and _.")
    if name in set_names(home) or former_names(home).get(name, now) != now:
        what = f"{name} is the name of a set, or was: runs may name it so."
        raise DatasetError(what, "Choose another name, or delete that set.")


def _moving(home: LoratoryHome) -> FileLock:
    """Return the lock of a person's sets, which guards their names."""
    return FileLock(home.server / f"sets-{home.owner}.lock")


def move_to_name(home: LoratoryHome, folder: Path, name: str, now: str = "") -> None:
    """Move a folder to where the set of that name is, unless another process took the name meanwhile."""
    with _moving(home):
        require_new_name(home, name, now)
        folder.rename(home.datasets / name)


def rename_set(home: LoratoryHome, name: str, new_name: str) -> None:
    """Rename a set, which is found by its former names too; a name that is in use is a DatasetError."""
    folder = set_folder(home, name)
    try:
        with FileLock(folder / _LOCK, makes_folder=False):
            former = [old for old, now in former_names(home).items() if now == folder.name]
            write_atomically(folder / _FORMER, "\n".join({*former, folder.name}))
            move_to_name(home, folder, new_name, folder.name)
    except (OSError, StorageError):
        if folder.exists():
            raise
        rename_set(home, name, new_name)  # it was renamed meanwhile


def delete_set(folder: Path, sets: Path | None = None) -> None:
    """Remove a set with its source and log, or raise a StorageError; name the folder of sets where it lies deeper."""
    with explain_os_errors(f"{folder.name} cannot be removed", "Check the permissions of its folder."):
        shutil.rmtree(folder.rename((sets or folder.parent) / f".deleted-{folder.name}-{os.getpid()}"))


def find_version(home: LoratoryHome, source: str) -> DataSet:
    """Return the set that NAME@VERSION, NAME or the same after set: means, at that version; none is a DatasetError."""
    name, _, version = source.strip().removeprefix(SET_PREFIX).partition("@")
    return find_set(home, name).at(version)


def pinned(source: str, home: LoratoryHome) -> str:
    """Return the name of a dataset with the version that it means now, if it is a set; raises as `find_version` does."""
    if not source.strip().startswith(SET_PREFIX):
        return source
    dataset = find_version(home, source)
    return f"{SET_PREFIX}{dataset.name}@{dataset.versions[-1].name}"


def news_of_set(source: str, home: LoratoryHome) -> str:
    """Return what a dataset is now, where it is a set that was renamed, changed or deleted; empty for all else."""
    try:
        now = pinned(source.partition("@")[0], home) if source.startswith(SET_PREFIX) else source
    except DatasetError as error:
        return error.what
    return f"The set is now {now}." if now != source else ""

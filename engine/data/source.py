"""Where rows come from: a sample, a file, a folder or the Hub, told apart by the name that the person gave."""

import re
from dataclasses import dataclass
from pathlib import Path

from engine.config.dataset import DatasetConfig
from engine.data.access import ANY_FILE, DataAccess, shown_name
from engine.data.files import open_file, open_folder
from engine.data.row_source import RowSource
from engine.data.source_name import is_on_hub
from engine.errors import DatasetError
from engine.paths import SAMPLES_FOLDER, LoratoryHome

SAMPLE_PREFIX = "sample:"

_SAMPLE_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")


@dataclass(frozen=True)
class SourceOptions:
    """What opening a source depends on beside its name.

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
    """Names of the datasets that come with Loratory, as a config takes them."""
    return tuple(sorted(f"{SAMPLE_PREFIX}{path.stem}" for path in SAMPLES_FOLDER.glob("*.jsonl")))


def open_source(config: DatasetConfig, options: SourceOptions) -> RowSource:
    """Open the source that a config names.

    Raises:
        DatasetError: If it is not there, may not be read, or is no dataset.
    """
    name = config.source.strip()
    if name.startswith(SAMPLE_PREFIX):
        return open_file(_sample_path(name), options.cache_folder)
    if is_on_hub(name):
        from engine.data.hub import HubRows

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
            f"There is no sample {shown_name(sample, 40)!r}.", f"The samples are {', '.join(list_samples())}."
        )
    return path

"""Rows of a dataset on the Hub, through the `datasets` library; no script of a repository is ever run."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from engine.config.run import DatasetConfig
from engine.data.files.access import shown_name
from engine.data.files.arrow_rows import without_gaps
from engine.data.hub import HUB_ROOT, confined_to, require_hub_id, require_own_files
from engine.data.records import Record, SourceForm, picked
from engine.errors import DatasetError, EngineError
from engine.hub_errors import DATASET, error_chain, find_fault

# What opens the file or address that a row names, such as Image, has this; Json has it too, and opens nothing.
_DECODER = "decode_example"
_PLAIN_FEATURES = ("Json",)
_LOCAL_PATH = re.compile(r"(?<![\w:/.@-])(?:[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+[^\s'\"]*")


class HubRows:
    """A dataset on the Hub.

    Args:
        config: Names the dataset, and its subset, split and revision.
        streaming: Take rows as they come, for a preview; else the dataset is fetched and kept by `datasets`.

    Raises:
        DatasetError: If it cannot be reached, or does not exist, or has no such subset or split.
    """

    def __init__(self, config: DatasetConfig, *, streaming: bool) -> None:
        self.name = shown_name(config.source)
        self.form = SourceForm("hub", "Hub dataset")
        self.kind = self.form.words
        self.notes: list[str] = []
        self.size_bytes: int | None = None
        self.bytes_read = 0
        self._config = config
        self._streaming = streaming
        self._data = self._load()
        features = getattr(self._data, "features", None) or {}
        media = [name for name, feature in features.items() if _holds_media(feature)]
        if media:
            if streaming:  # else each is opened before it is removed: a file or an address that the row names
                self._data = self._data.decode(False)
            self._data = self._data.remove_columns(media)
            self.notes.append(f"Columns that hold pictures or sound are not read: {', '.join(media)}.")
        self._total_rows: int | None = None if streaming else len(self._data)
        self.download_bytes: int | None = getattr(getattr(self._data, "info", None), "download_size", None)
        self.columns: tuple[str, ...] = tuple(name for name in features if name not in media)
        self._features = {name: feature for name, feature in features.items() if name not in media}

    @property
    def total_rows(self) -> int | None:
        return self._total_rows

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Yield rows from `first_row` on.

        Raises:
            DatasetError: If the connection is lost on the way, or a file cannot be read.
        """
        if self._streaming:
            rows: Any = self._data.skip(first_row) if first_row else self._data
        else:
            rows = (self._data[index] for index in range(first_row, len(self._data)))
        row = first_row
        try:
            for value in rows:
                yield Record(row, None, {name: self._without_gaps(name, cell) for name, cell in value.items()})
                row += 1
            self._total_rows = row
        except Exception as error:  # a lost connection, a damaged file, rows that do not fit their columns
            raise _explain(error, self._config.source.strip()) from error

    def approach(self, _first_row: int, /) -> Iterator[None]:
        """Whatever comes before a row is passed over by the library itself."""
        return iter(())

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows: one by one where the dataset is here, else in one pass."""
        if self._streaming:
            return picked(self.records(rows[0]), rows)
        return (next(self.records(row)) for row in rows if row < len(self._data))

    def fingerprint(self) -> str:
        known = getattr(self._data, "_fingerprint", None)
        named = [self._config.source, self._config.subset, self._config.split, self._config.revision, known]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def _without_gaps(self, name: str, cell: Any) -> Any:
        return _without_gaps(cell, self._features[name]) if name in self._features else without_gaps(cell)

    def _load(self) -> Any:
        datasets = _import_datasets()
        hub_id = require_hub_id(self._config.source.strip())
        try:
            with confined_to(hub_id):
                # With its root, the id can mean no folder here, which the library would otherwise read instead.
                builder = datasets.load_dataset_builder(
                    f"{HUB_ROOT}{hub_id}", self._config.subset, revision=self._config.revision
                )
            require_own_files(builder, hub_id)
            if self._streaming:
                return builder.as_streaming_dataset(split=self._config.split)
            builder.download_and_prepare()
            return builder.as_dataset(split=self._config.split)
        except Exception as error:  # whatever a repository makes the library stumble over
            raise _explain(error, hub_id) from error


def _import_datasets() -> Any:
    """Import the library late, for it takes most of a second; and where torch is not here yet, without torch.

    Streamed rows would take torch in for a counter that only its data loaders share. `USE_TORCH` is the library's switch.
    """
    before = os.environ.get("USE_TORCH")
    if "torch" not in sys.modules:
        os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        # Processes that are started from here may well need torch.
        if before is None:
            os.environ.pop("USE_TORCH", None)
        else:
            os.environ["USE_TORCH"] = before
    return datasets


def _without_gaps(value: Any, feature: Any) -> Any:
    """Return a value without what Arrow filled in; what a file held as JSON has its own nulls, and keeps them."""
    if type(feature).__name__ in _PLAIN_FEATURES:
        return value
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    if isinstance(value, list) and inner is not None:
        return [_without_gaps(item, inner) for item in value]
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: _without_gaps(item, feature.get(key)) for key, item in value.items() if item is not None}
    return value


def _holds_media(feature: Any) -> bool:
    """Return whether a feature holds pictures, sound or the like, at any depth."""
    if isinstance(feature, dict):
        return any(_holds_media(inner) for inner in feature.values())
    if isinstance(feature, list | tuple):
        return any(_holds_media(inner) for inner in feature)
    inner = getattr(feature, "feature", None)  # of a list
    if inner is not None:
        return _holds_media(inner)
    return hasattr(feature, _DECODER) and type(feature).__name__ not in _PLAIN_FEATURES


def _explain(error: Exception, name: str) -> EngineError:
    """Return what an error of the `datasets` library, or of a library below it, means for a dataset."""
    chain = list(error_chain(error))
    for link in chain:  # an error of ours that the library wrapped
        if isinstance(link, EngineError):
            return link
    name = shown_name(name)
    fault = find_fault(error)
    if fault is not None:
        return DATASET.explain(fault, name)
    reason = _reason(chain[-1])
    for kinds, what, fix in _CONTENT_ERRORS:
        if kinds & {kind.__name__ for kind in type(error).__mro__ + type(chain[-1]).__mro__}:
            return DatasetError(what.format(name=name, reason=reason), fix)
    return DatasetError(
        f"{name} cannot be read: {reason}.", "Choose another revision, or download its files and choose those."
    )


# Kinds of errors by name, as the library has no module that is light to import.
_CONTENT_ERRORS = (
    (
        {"DataFilesNotFoundError", "EmptyDatasetError"},
        "{name} holds no data files that can be read.",
        "Choose a dataset that is stored as Parquet, JSON, CSV, Arrow or text.",
    ),
    (
        {"DatasetBuildError", "CastError", "ArrowException"},
        "The data files of {name} cannot be read as rows: {reason}.",
        "Choose another subset or revision, or download the files and choose those that are whole.",
    ),
    ({"DatasetsError"}, "{name} does not match its description: {reason}.", "Choose another revision or dataset."),
    # No such subset or split; the library's message lists those that exist.
    ({"ValueError"}, "{name} cannot be opened: {reason}.", "Correct the subset, split or revision."),
    # A repository that needs its own Python code.
    ({"RuntimeError"}, "{name} cannot be opened: {reason}.", "Choose a dataset that is stored as files."),
    (
        {"OSError"},
        "The files of {name} could not be fetched or read ({reason}).",
        "Check the permissions of the cache of Hugging Face, and try again.",
    ),
)


def _reason(error: BaseException) -> str:
    """Return the first line of a message, without paths of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = _LOCAL_PATH.sub("(a file)", lines[0])[:200].rstrip(".: ") if lines else ""
    return words or type(error).__name__

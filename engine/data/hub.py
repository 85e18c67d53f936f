"""Datasets on the Hub: which names mean one, which files one may name, and its rows, through the `datasets` library.

No script of a repository is ever run.
"""

import functools
import hashlib
import json
import os
import pkgutil
import re
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.data.files import names_file
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.files.columnar import without_gaps
from loratory.engine.data.records import Record, RowSource, SourceForm, lookup
from loratory.engine.errors import DatasetError, EngineError
from loratory.engine.hub import DATASET, error_chain, find_fault
from loratory.engine.models.source import is_hub_id, may_need_hub
from loratory.engine.paths import searches_working_folder
from loratory.engine.processes.spawn import Access

_HUB_ROOT = "hf://datasets/"
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")

# The rest open what a row or a name inside an archive points to, or need libraries that are not installed. "cache" is
# what this library itself fetched before.
_READERS = frozenset({"arrow", "cache", "csv", "json", "parquet", "text"})
_CONFINED_TO: ContextVar[str | None] = ContextVar("confined_to", default=None)

# What opens the file or address that a row names, such as Image, has this; Json has it too, and opens nothing.
_DECODER = "decode_example"
_PLAIN_FEATURES = ("Json",)
_IMAGE = "Image"  # whose bytes the dataset holds; the media store decodes them
_LOCAL_PATH = re.compile(r"(?<![\w:/.@-])(?:[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+[^\s'\"]*")


def is_on_hub(source: str) -> bool:
    """Return whether a name means a dataset on the Hub: it looks like an id and not like a file, and no file has it."""
    name = source.strip()
    return is_hub_id(name) and not names_file(name) and not _is_there(name)


def reads_from_hub(*datasets: DatasetConfig) -> bool:
    """Return whether one of these datasets, or one that is mixed in, is on the Hub."""
    return any(is_on_hub(source) for dataset in datasets for source in (dataset.source, *dataset.mix))


def hub_access(model: ModelConfig, *datasets: DatasetConfig) -> frozenset[Access]:
    """Return the logins that a process needs for this model and datasets: the Hub, if one of them may be there."""
    needs_hub = may_need_hub(model) or reads_from_hub(*datasets)
    return frozenset({Access.HUB}) if needs_hub else frozenset()


def _is_there(name: str) -> bool:
    try:
        return searches_working_folder() and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, an unknown home
        return False


def require_hub_id(name: str) -> str:
    """Return an id that can only mean a repository on the Hub.

    The library takes the names of its own readers, such as `text`, for an order to read the working folder.

    Raises:
        DatasetError: If it is not such an id.
    """
    owner, slash, bare = name.rpartition("/")
    is_name = _HUB_NAME.fullmatch(bare) is not None and (not slash or _HUB_NAME.fullmatch(owner) is not None)
    if not is_name or owner == "buckets" or ".." in name:
        raise DatasetError(
            f"{shown_name(name)} is not the id of a dataset on the Hub.", "An id reads owner/name, as in its address."
        )
    if not slash and bare.lower() in _reader_names():
        raise DatasetError(
            f"{shown_name(name)} is the name of a file format, not of a dataset on the Hub.",
            "Give the path of a file or a folder, or the id of a dataset as owner/name.",
        )
    return name


@contextmanager
def confined_to(hub_id: str) -> Iterator[None]:
    """Refuse a README that refers to files outside its repository, before they are opened.

    Opening them would request any URL in the README, and reveal which files exist here.
    """
    _install_confinement()
    token = _CONFINED_TO.set(hub_id)
    try:
        yield
    finally:
        _CONFINED_TO.reset(token)


def _install_confinement() -> None:
    from datasets import data_files

    resolve = data_files.resolve_pattern
    if hasattr(resolve, "confined"):
        return

    @functools.wraps(resolve)
    def resolve_confined(pattern: str, base_path: str, *rest: Any, **options: Any) -> Any:
        hub_id = _CONFINED_TO.get()
        if hub_id is not None and not (_is_inside(base_path, hub_id) and _is_relative(pattern)):
            raise _points_outside(hub_id)
        return resolve(pattern, base_path, *rest, **options)

    resolve_confined.confined = True  # type: ignore[attr-defined]
    data_files.resolve_pattern = resolve_confined


def require_own_files(builder: Any, hub_id: str) -> None:
    """Refuse a dataset that would be read from outside its repository, or by a reader for other data.

    Raises:
        DatasetError: If it is one.
    """
    modules = [kind.__module__ for kind in type(builder).__mro__]
    readers = {name.split(".")[2] for name in modules if name.startswith("datasets.packaged_modules.")}
    if not readers or not readers <= _READERS:
        names = ", ".join(sorted(readers)) or "an unknown kind"
        raise DatasetError(
            f"{shown_name(hub_id)} is stored as {names}, which is not read from the Hub.",
            "Choose a dataset that is stored as Parquet, JSON, CSV, Arrow or text.",
        )
    for files in (getattr(builder.config, "data_files", None) or {}).values():
        if not all(_is_inside(str(file), hub_id) for file in files):
            raise _points_outside(hub_id)


def _points_outside(hub_id: str) -> DatasetError:
    return DatasetError(
        f"{shown_name(hub_id)} refers to data files outside its repository; none of them was opened.",
        "Choose another dataset, or download the files that you trust and choose those.",
    )


def _is_relative(pattern: str) -> bool:
    plain = pattern.replace("\\", "/")
    return not plain.startswith(("/", "~")) and ":" not in plain and ".." not in plain.split("/")


def _is_inside(address: str, hub_id: str) -> bool:
    plain = address.replace("\\", "/")
    rest = plain.removeprefix(f"{_HUB_ROOT}{hub_id}")
    return rest != plain and rest[:1] in ("@", "/") and "::" not in rest and ".." not in rest.split("/")


@functools.cache
def _reader_names() -> frozenset[str]:
    from datasets import packaged_modules

    names = {module.name for module in pkgutil.iter_modules(packaged_modules.__path__)}
    return frozenset(names | set(packaged_modules._PACKAGED_DATASETS_MODULES))


class HubRows(RowSource):
    """A dataset on the Hub, with rows streamed for a preview, or fetched and kept by `datasets`.

    Raises:
        DatasetError: If it cannot be reached, or does not exist, or has no such subset or split.
    """

    form = SourceForm("hub", "Hub dataset")
    notes: Sequence[str] = ()
    size_bytes: int | None = None
    bytes_read = 0
    total_rows: int | None = None

    def __init__(self, config: DatasetConfig, *, streaming: bool) -> None:
        self.name = shown_name(config.source)
        self._config = config
        self._streaming = streaming
        self._data = self._load()
        features = getattr(self._data, "features", None) or {}
        media = [name for name, feature in features.items() if _holds_media(feature)]
        if streaming and any(map(_decodes, features.values())):
            self._data = self._data.decode(False)  # else each is opened: a file or an address that the row names
        elif not streaming:
            _disable_decoding(self._data.info.features or {})
        if media:
            self._data = self._data.remove_columns(media)
            self.notes = [f"Columns that hold sound, video or PDF are not read: {', '.join(media)}."]
        if not streaming:
            self.total_rows = len(self._data)
        self.download_bytes: int | None = getattr(getattr(self._data, "info", None), "download_size", None)
        self._features = {name: feature for name, feature in features.items() if name not in media}
        self.columns = tuple(self._features)

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows: one by one where the dataset is here, else in one pass."""
        numbers, features = lookup(rows), self._features
        numbered_rows: Iterable[tuple[int, Any]]
        if self._streaming:
            numbered_rows = enumerate(self._data.skip(rows[0]) if rows[0] else self._data, rows[0])
        else:
            numbered_rows = ((row, self._data[row]) for row in rows[: bisect_left(rows, len(self._data))])
        row = rows[0] - 1
        try:
            for row, value in numbered_rows:
                cells = {
                    name: _without_gaps(cell, features[name]) if name in features else without_gaps(cell)
                    for name, cell in value.items()
                }
                yield Record(row, None, cells) if row in numbers else None
                if row == rows[-1]:
                    return
            if self._streaming:
                self.total_rows = row + 1
        except Exception as error:  # a lost connection, a damaged file, rows that do not fit their columns
            raise _explain(error, self._config.source.strip()) from error

    def fingerprint(self) -> str:
        config = self._config
        parts = [config.source, config.subset, config.split, config.revision, getattr(self._data, "_fingerprint", None)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _load(self) -> Any:
        datasets = _import_datasets()
        hub_id = require_hub_id(self._config.source.strip())
        try:
            with confined_to(hub_id):
                # With its root, the id cannot mean a local folder, which the library would otherwise read.
                builder = datasets.load_dataset_builder(
                    f"{_HUB_ROOT}{hub_id}", self._config.subset, revision=self._config.revision
                )
            require_own_files(builder, hub_id)
            if self._streaming:
                return builder.as_streaming_dataset(split=self._config.split)
            builder.download_and_prepare()
            return builder.as_dataset(split=self._config.split)
        except Exception as error:  # anything that a repository makes the library raise
            raise _explain(error, hub_id) from error


def _import_datasets() -> Any:
    """Import the library late, because it takes most of a second, and without torch if torch is not loaded yet.

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
    """Return a value without the nulls that Arrow filled in; data from JSON keeps its own nulls."""
    if type(feature).__name__ in _PLAIN_FEATURES:
        return value
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    if isinstance(value, list) and inner is not None:
        return [_without_gaps(child, inner) for child in value]
    if type(feature).__name__ == _IMAGE:
        return without_gaps(value)
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: _without_gaps(child, feature.get(key)) for key, child in value.items() if child is not None}
    return value


def _leaves(feature: Any) -> Iterator[Any]:
    """Yield the features of single values in a column's."""
    inner = getattr(feature, "feature", None)  # of a list
    if isinstance(feature, dict | list | tuple) or inner is not None:
        parts = feature.values() if isinstance(feature, dict) else feature if inner is None else (inner,)
        yield from (leaf for part in parts for leaf in _leaves(part))
    else:
        yield feature


def _decodes(feature: Any) -> bool:
    return any(hasattr(leaf, _DECODER) and type(leaf).__name__ not in _PLAIN_FEATURES for leaf in _leaves(feature))


def _holds_media(feature: Any) -> bool:
    return any(_decodes(leaf) for leaf in _leaves(feature) if type(leaf).__name__ != _IMAGE)


def _disable_decoding(features: Any) -> None:
    for leaf in _leaves(features):
        if type(leaf).__name__ == _IMAGE:
            leaf.decode = False


def _explain(error: Exception, name: str) -> EngineError:
    """Convert an error of the `datasets` library, or of a library below it."""
    chain = list(error_chain(error))
    for link in chain:  # an error of ours that the library wrapped
        if isinstance(link, EngineError):
            return link
    name = shown_name(name)
    fault = find_fault(error)
    if fault is not None:
        return DATASET.explain(fault, name)
    kinds = {kind.__name__ for kind in type(error).__mro__ + type(chain[-1]).__mro__}
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError"}:
        return DatasetError(
            f"{name} holds no data files that can be read.",
            "Choose a dataset that is stored as Parquet, JSON, CSV, Arrow or text.",
        )
    # No such subset or split, for which the library's message lists those that exist; data that is damaged; a script.
    return DatasetError(
        f"{name} cannot be read: {_reason(chain[-1])}.",
        "Correct the subset, split or revision, or download its files and choose those.",
    )


def _reason(error: BaseException) -> str:
    """Return the first line of a message, without paths of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = _LOCAL_PATH.sub("(a file)", lines[0])[:200].rstrip(".: ") if lines else ""
    return text or type(error).__name__

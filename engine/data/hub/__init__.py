"""Datasets on the Hub: which names mean one, and which files one may name."""

import functools
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from engine.config.run import DatasetConfig, ModelConfig
from engine.data.files import names_file
from engine.data.files.access import shown_name
from engine.errors import DatasetError
from engine.models.source import is_hub_id, may_need_hub
from engine.processes.spawn import Access


def is_on_hub(source: str) -> bool:
    """Return whether a name means a dataset on the Hub: it looks like an id and not like a file, and no file has it."""
    name = source.strip()
    return is_hub_id(name) and not names_file(name) and not _is_there(name)


def reads_from_hub(dataset: DatasetConfig) -> bool:
    """Return whether the dataset, or one that is mixed in, is on the Hub."""
    return any(map(is_on_hub, (dataset.source, *dataset.mix)))


def hub_access(model: ModelConfig, dataset: DatasetConfig | None = None) -> frozenset[Access]:
    """Return what a process may log in to for this model and dataset: the Hub, where one of them may be there."""
    needs_hub = may_need_hub(model) or (dataset is not None and reads_from_hub(dataset))
    return frozenset({Access.HUB}) if needs_hub else frozenset()


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, an unknown home
        return False


HUB_ROOT = "hf://datasets/"
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")

# The rest open what a row or a name inside an archive points to, or need libraries that are not installed. "cache" is
# what this library itself fetched before.
_READERS = frozenset({"arrow", "cache", "csv", "json", "parquet", "text"})
_CONFINED_TO: ContextVar[str | None] = ContextVar("confined_to", default=None)


def require_hub_id(name: str) -> str:
    """Give an id back that can only mean a repository on the Hub.

    The library takes the names of its own readers, such as `text`, for an order to read the working folder.

    Raises:
        DatasetError: If it is none.
    """
    owner, slash, bare = name.rpartition("/")
    named = _HUB_NAME.fullmatch(bare) is not None and (not slash or _HUB_NAME.fullmatch(owner) is not None)
    if not named or owner == "buckets" or ".." in name:
        raise DatasetError(
            f"{shown_name(name)} is not the id of a dataset on the Hub.", "An id reads owner/name, as in its address."
        )
    if not slash and bare.lower() in _reader_names():
        raise DatasetError(
            f"{shown_name(name)} is the name of a file format and of no dataset on the Hub.",
            "Give the path of a file or a folder, or the id of a dataset as owner/name.",
        )
    return name


@contextmanager
def confined_to(hub_id: str) -> Iterator[None]:
    """Refuse a README that names files outside its own repository, before they are looked for.

    Looking alone would request any address that the README names, and reveal which files exist here.
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
    """Refuse a dataset that would be read from anywhere but its own repository, or by a reader that is not plain.

    Args:
        builder: As `load_dataset_builder` gives it, before anything was read.
        hub_id: The dataset that was asked for.

    Raises:
        DatasetError: If it is one.
    """
    readers = {kind.__module__.split(".")[2] for kind in type(builder).__mro__ if _is_reader(kind)}
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
        f"{shown_name(hub_id)} names data files outside its own repository, and none of them was opened.",
        "Choose another dataset, or download the files that you trust and choose those.",
    )


def _is_relative(pattern: str) -> bool:
    plain = pattern.replace("\\", "/")
    return not plain.startswith(("/", "~")) and ":" not in plain and ".." not in plain.split("/")


def _is_inside(address: str, hub_id: str) -> bool:
    plain = address.replace("\\", "/")
    rest = plain.removeprefix(f"{HUB_ROOT}{hub_id}")
    return rest != plain and rest[:1] in ("@", "/") and "::" not in rest and ".." not in rest.split("/")


def _is_reader(kind: type) -> bool:
    return kind.__module__.startswith("datasets.packaged_modules.")


@functools.lru_cache(maxsize=1)
def _reader_names() -> frozenset[str]:
    from datasets import packaged_modules

    found = {module.name for module in pkgutil.iter_modules(packaged_modules.__path__)}
    return frozenset(found | set(packaged_modules._PACKAGED_DATASETS_MODULES))

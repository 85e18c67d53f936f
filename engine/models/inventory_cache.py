"""A cache of module inventories on disk, with which an estimate needs neither torch nor a second."""

import contextlib
import hashlib
import importlib.metadata
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError, StorageError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.folder import ModelPart, read_config
from loratory.engine.models.shape import ModelShape
from loratory.engine.models.source import find_model, resolve_model
from loratory.engine.paths import LoratoryHome

_INVENTORY_VERSION = 5  # raise it when engine/inspector/worker/inventory.py reads the same architecture differently

SHIPPED = Path(__file__).with_name("inventories.zip")

# Say nothing about sizes, and differ between copies of one model.
_VOLATILE = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"})


def architecture_values(model: ModelConfig, home: LoratoryHome) -> dict[str, JsonValue]:
    """Return the values of a model's config.json, from the catalogue, a folder, or the Hub; no weights are fetched.

    Raises:
        ModelError: If the model cannot be found or reached.
    """
    entry = find_in_catalog(model.id)
    if entry is not None:
        return dict(entry.config)
    source = resolve_model(model, home, part=ModelPart.CONFIG)
    return read_config(Path(source.location) / "config.json", source.name)


def known_inventory(model: ModelConfig, home: LoratoryHome) -> ModelShape | None:
    """Return the inventory of a model whose configuration is here, if it is cached; no request is made."""
    try:
        entry = find_in_catalog(model.id)
        if entry is not None:
            return cached_inventory(entry.config, home, is_public=True)
        folder = find_model(model, home, ModelPart.CONFIG)
        return None if folder is None else cached_inventory(read_config(folder / "config.json", model.id), home)
    except ModelError:
        return None


def cached_inventory(
    values: Mapping[str, JsonValue], home: LoratoryHome, *, is_public: bool = False
) -> ModelShape | None:
    """Return the cached inventory of an architecture, made with this transformers; in about a millisecond.

    That of a public one, of the catalogue, is one copy for all people of a lab, and comes with Loratory where this
    transformers is the one that it was made with.
    """
    file = _cache_file(values, home, is_public)
    return read_model(file, ModelShape) or (_read_shipped(file.name) if is_public else None)


def _read_shipped(name: str) -> ModelShape | None:
    """Return an inventory that `tests.models.make_inventories` has put into the package."""
    with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile, ValueError), zipfile.ZipFile(SHIPPED) as archive:
        return ModelShape.model_validate_json(archive.read(name))
    return None


def remember_inventory(
    values: Mapping[str, JsonValue], shape: ModelShape, home: LoratoryHome, *, is_public: bool = False
) -> None:
    """Keep an inventory for `cached_inventory`; a cache that cannot be written costs time, not the answer."""
    path = _cache_file(values, home, is_public)
    with contextlib.suppress(StorageError):
        write_atomically(path, shape.model_dump_json(exclude_defaults=True), makes_folder=True)


def _cache_file(values: Mapping[str, JsonValue], home: LoratoryHome, is_public: bool) -> Path:
    cache = home.shared_cache if is_public else home.cache
    return cache / "inventory" / inventory_name(values)


def inventory_name(values: Mapping[str, JsonValue]) -> str:
    """Return the name of the file with the inventory of an architecture; another one for another transformers."""
    lasting = {key: value for key, value in values.items() if key not in _VOLATILE}
    version = importlib.metadata.version("transformers")
    identity = json.dumps([_INVENTORY_VERSION, version, lasting], sort_keys=True)
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"

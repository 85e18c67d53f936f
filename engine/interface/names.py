"""What names mean, in commands and in Python: settings of a run, a run or a model, a path."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratory.engine.chat.contract import AdapterChoice, ChatTarget
from loratory.engine.config.load import config_from_mapping, mapping_from_file, override_of, with_overrides
from loratory.engine.config.presets import find_preset
from loratory.engine.config.run import ModelConfig, Quantization, RunConfig
from loratory.engine.errors import ConfigError, RunError, StorageError, shorten
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.names import is_automatic
from loratory.engine.runs.store import RunStore

Settings = str | Path | RunConfig | Mapping[str, Any]  # a file, a preset's name, a run's id, or the settings themselves
Changes = Mapping[str, Any] | Sequence[str] | None  # by name, such as {"adapter.r": 16}, or `section.field=value` texts


def load_config(settings: Settings, changes: Changes, home: LoratoryHome) -> RunConfig:
    """Read settings, apply changes, and check the whole.

    A name that looks like a file is one; otherwise presets come before runs. Raises as `load_config_mapping` does, and a
    ConfigError with every problem if any setting is wrong.
    """
    return config_from_mapping(load_config_mapping(settings, changes, home))


def load_config_mapping(settings: Settings, changes: Changes, home: LoratoryHome) -> dict[str, Any]:
    """Read settings as plain nested values, before they are checked; an empty name leaves all to the changes.

    Raises:
        ConfigError: If nothing bears that name, or a change is malformed.
        StorageError: If the file cannot be read, or no file can have that name.
    """
    if isinstance(settings, RunConfig):
        settings = settings.model_dump(mode="json", exclude_unset=True)
    values = settings if isinstance(settings, Mapping) else _mapping(str(settings), home) if settings else {}
    if isinstance(changes, Mapping):
        changes = [override_of(name, value) for name, value in changes.items()]
    return with_overrides(values, changes or ())


def _mapping(text: str, home: LoratoryHome) -> dict[str, Any]:
    if not home.owner:  # people of a lab name no files of its machine
        path = named_path(text)
        if path.suffix.lower() in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
            return mapping_from_file(path)
    try:
        return find_preset(text, home, kinds="file, preset or run").mapping()
    except ConfigError as no_preset:
        try:
            run = RunStore(home, home.owner or local_owner()).get(text)
        except RunError:
            raise no_preset from None
    mapping = mapping_from_file(run.folder.config)
    section = mapping.get("run")
    if isinstance(section, dict) and is_automatic(str(section.get("name")), run.id):
        del section["name"]
    return mapping


def named_path(text: str | Path) -> Path:
    """Return the path that a person named, checked to be usable; it need not exist.

    Raises:
        StorageError: If nothing could be there: the name is too long, ~ names no user, or a folder on the way is closed.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, closed; no such user; characters that no path has
        reason = shorten(getattr(error, "strerror", None) or str(error).rstrip("."))
        what = f"The path {shorten(str(text))} cannot be used ({reason})."
        raise StorageError(what, "Check its name and permissions.") from error
    return path


def find_target(text: str, store: RunStore) -> ChatTarget:
    """Return what RUN names: a folder that exists, a run of this owner, or a model.

    Raises:
        RunError: If it is none of them.
        StorageError: If no folder can have that name.
    """
    folder = named_path(text)
    if folder.is_dir():
        is_trained = (folder / "adapter_config.json").is_file() or (folder / "config.yaml").is_file()
        folder = folder.resolve()
        return ChatTarget.of_run(folder) if is_trained else ChatTarget.of_model(ModelConfig(id=str(folder)))
    try:
        return ChatTarget.of_run(store.get(text).folder.path)
    except RunError as error:
        if find_in_catalog(text) is not None or "/" in text or folder.suffix.lower() == ".gguf":
            return ChatTarget.of_model(ModelConfig(id=text))
        raise RunError(error.what, "List the runs with `loratory runs`, or name a model or a folder.") from error


def choose_target(
    run: str, store: RunStore, checkpoint: str | None, model: str | None, quantization: Quantization | None = None
) -> ChatTarget:
    """Find what RUN names, at a checkpoint, on another base, or in another precision.

    Raises as `find_target` does, and a RunError for a checkpoint of a model.
    """
    target = find_target(run, store)
    changes: dict[str, object] = {"quantization": quantization}
    if checkpoint is not None and target.tuned is None:
        raise RunError("A model has no checkpoints.", "Leave --checkpoint out, or name a run.")
    if checkpoint is not None and target.tuned is not None:
        changes["tuned"] = AdapterChoice(folder=target.tuned.folder, checkpoint=checkpoint)
    if model is not None:
        changes["model"] = ModelConfig(id=model)
    return target.model_copy(update=changes)

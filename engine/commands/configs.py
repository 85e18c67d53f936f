"""CONFIG on the command line: a YAML file, a preset's name, or a run's id."""

from collections.abc import Sequence
from typing import Any

from engine.commands.named_path import named_path
from engine.config.load import config_from_mapping, mapping_from_file, with_overrides
from engine.config.presets import find_preset
from engine.config.run import RunConfig
from engine.errors import ConfigError, Problem, RunError
from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore


def load_config_argument(text: str, overrides: Sequence[str], home: LoratoryHome) -> RunConfig:
    """Read what CONFIG names, apply `section.field=value` overrides, and check the whole.

    A name that looks like a file is one; otherwise presets come before runs.

    Raises:
        ConfigError: If nothing bears that name, or any setting is wrong; lists every problem.
        StorageError: If the file cannot be read, or no file can have that name.
    """
    return config_from_mapping(load_config_mapping(text, overrides, home))


def load_config_mapping(text: str, overrides: Sequence[str], home: LoratoryHome) -> dict[str, Any]:
    """The same before it is checked, as plain nested values.

    Raises:
        ConfigError: If nothing bears that name, or an override is malformed.
        StorageError: If the file cannot be read, or no file can have that name.
    """
    return with_overrides(_mapping(text, home), overrides)


def _mapping(text: str, home: LoratoryHome) -> dict[str, Any]:
    path = named_path(text)
    looks_like_file = path.suffix.lower() in (".yaml", ".yml") or len(path.parts) > 1
    if looks_like_file or path.is_file():
        return mapping_from_file(path)
    try:
        return find_preset(text).mapping()
    except ConfigError as no_preset:
        try:
            run = RunStore(home, local_owner()).get(text)
        except RunError:
            known = no_preset.problems[0].message
            message = known.replace("there is no file or preset", "there is no file, preset or run", 1)
            raise ConfigError([Problem("", message)]) from None
    return mapping_from_file(run.folder.config)

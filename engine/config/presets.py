"""The presets that ship and those that a person saved: named starting points, each a configuration file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.engine.config.load import config_from_mapping, mapping_from_file, with_stand_ins
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem, StorageError, shorten
from loratory.engine.files import write_atomically
from loratory.engine.paths import PRESETS_FOLDER, LoratoryHome

_MOST_PRESETS = 100  # with those that ship
PRESET_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # of one that a person saves; also the name of its file
_HEADER = re.compile(r"^# (Title|Device|About|Starts from): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Preset:
    """A named starting point."""

    name: str
    title: str
    about: str
    device: str  # the device it is made for, in words
    memory_gib: float | None  # of that device, where it is a GPU; None for the CPU
    path: Path
    starts_from: str = ""  # the preset whose result it is made to continue
    is_own: bool = False  # whether a person saved it; it may leave out model and data

    def load(self) -> RunConfig:
        """Read the configuration, with stand-ins for a model and a dataset that are left out."""
        return config_from_mapping(with_stand_ins(self.mapping()))

    def mapping(self) -> dict[str, Any]:
        """Return the plain values, for overrides."""
        return mapping_from_file(self.path)


def list_presets(home: LoratoryHome | None = None) -> list[Preset]:
    """Return all presets, CPU first, then by memory of the device; after them those that the person of a home saved."""
    presets = [_read_preset(path) for path in PRESETS_FOLDER.glob("*.yaml")]
    paths = sorted(home.presets.glob("*.yaml")) if home is not None else []
    names = [(path, path.stem) for path in paths if PRESET_NAME.fullmatch(path.stem)]
    own = [Preset(name, name, "", "yours", None, path, is_own=True) for path, name in names]
    return [*sorted(presets, key=lambda preset: (preset.memory_gib or 0, preset.name)), *own]


def find_preset(name: str, home: LoratoryHome | None = None, *, kinds: str = "preset") -> Preset:
    """Look up one preset, also among those that the person of a home saved; `kinds` is what the name may stand for.

    Raises:
        ConfigError: If there is none of that name; lists those that exist.
    """
    presets = {preset.name: preset for preset in list_presets(home)}
    if name not in presets:
        message = f"no {kinds} is called {shorten(name)!r}; the presets are {', '.join(presets)}."
        raise ConfigError([Problem("", message)])
    return presets[name]


def save_preset(home: LoratoryHome, name: str, text: str) -> None:
    """Save a checked draft in YAML as a preset of the person of a home.

    Raises:
        StorageError: If the name is not usable or in use, there are too many, or the file cannot be written.
    """
    names = [preset.name.lower() for preset in list_presets(home)]
    if home.is_guest:
        raise StorageError("Presets of guests are not saved.", "Ask an admin of the lab to become a member.")
    if PRESET_NAME.fullmatch(name) is None:
        raise StorageError(f"A preset cannot be named {shorten(name)!r}.", "Use up to 40 letters, digits, - and _.")
    if name.lower() in names:
        raise StorageError(f"There is a preset {name} already.", "Choose another name, or delete it if it is yours.")
    if len(names) >= _MOST_PRESETS:
        raise StorageError(f"There are {len(names)} presets, the most allowed.", "Delete one of yours first.")
    write_atomically(home.presets / f"{name}.yaml", text, makes_folder=True)


def _read_preset(path: Path) -> Preset:
    header = dict(_HEADER.findall(path.read_text(encoding="utf-8")))
    title, about, device = (header[name] for name in ("Title", "About", "Device"))
    memory = None if device.startswith("CPU") else re.search(r"([0-9.]+) GiB", device)
    gib = float(memory[1]) if memory else None
    return Preset(path.stem, title, about, device, gib, path, header.get("Starts from", ""))

"""The fine-tunes that ship with Loratory: each a RunConfig in YAML, opened by lines that say for whom it is."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.load import config_from_mapping, mapping_from_file
from engine.config.run import RunConfig
from engine.errors import ConfigError, Problem, shorten
from engine.paths import PRESETS_FOLDER

_HEADER = re.compile(r"^# (Title|Device|About|Starts from): (.+)$")


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

    def load(self) -> RunConfig:
        """Read the configuration."""
        return config_from_mapping(self.mapping())

    def mapping(self) -> dict[str, Any]:
        """Plain values, for overrides."""
        return mapping_from_file(self.path)


def list_presets(folder: Path = PRESETS_FOLDER) -> list[Preset]:
    """All presets, CPU first, then by memory of the device."""
    presets = [_read_preset(path) for path in folder.glob("*.yaml")]
    return sorted(presets, key=lambda preset: (preset.memory_gib or 0, preset.name))


def find_preset(name: str, folder: Path = PRESETS_FOLDER) -> Preset:
    """Look up one preset.

    Raises:
        ConfigError: If there is none of that name; lists those that exist.
    """
    presets = {preset.name: preset for preset in list_presets(folder)}
    if name not in presets:
        message = f"there is no file or preset {shorten(name)!r}; the presets are {', '.join(presets)}."
        raise ConfigError([Problem("", message)])
    return presets[name]


def _read_preset(path: Path) -> Preset:
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    header = {match[1]: match[2].strip() for line in lines if (match := _HEADER.match(line))}
    missing = {"Title", "Device", "About"} - header.keys()
    if missing:
        raise ConfigError([Problem("", f"the preset {path.stem} lacks the opening line {', '.join(sorted(missing))}.")])
    memory = None if header["Device"].startswith("CPU") else re.search(r"([0-9.]+) GiB", header["Device"])
    gib = float(memory[1]) if memory else None
    return Preset(
        path.stem, header["Title"], header["About"], header["Device"], gib, path, header.get("Starts from", "")
    )

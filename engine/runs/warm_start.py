"""The adapter that a run starts from, found by what its configuration names."""

import contextlib
from pathlib import Path

from engine.config.run import RunConfig
from engine.errors import ConfigError, EngineError, Problem
from engine.files import resolve_inside
from engine.paths import AllowedPaths, LoratoryHome, typed_path
from engine.runs.store import RUN_ID

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def find_warm_start(text: str, runs: Path, home: LoratoryHome | None = None) -> Path:
    """Return the folder of an adapter, from a run's id in `runs`, a run's folder, or the adapter's folder.

    In a lab, the person whose home it is must be allowed to name that folder.

    Raises:
        ConfigError: If there is no adapter.
    """
    allowed = AllowedPaths.of(home) if home is not None else None
    path = typed_path(text) if allowed is None or RUN_ID.fullmatch(text) else allowed.read(text)
    place = resolve_inside(runs, text) if RUN_ID.match(text) else path
    with contextlib.suppress(OSError, ValueError):  # names that no file can have
        for folder in (place, place / "adapter"):
            if (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
                return folder
    message = f"{text[:100]} holds no adapter; give a finished run's id, or a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
    raise ConfigError([Problem("adapter.warm_start", message)])


def start_of(config: RunConfig, runs: Path, home: LoratoryHome | None = None) -> Path | None:
    """Return the run, or else the adapter's folder, that a run of `runs` started from.

    None for a run with a new adapter, and where that is gone or not allowed.
    """
    if config.adapter.warm_start is None:
        return None
    with contextlib.suppress(EngineError, OSError):
        folder = find_warm_start(config.adapter.warm_start, runs, home).resolve()
        return folder.parent if RUN_ID.fullmatch(folder.parent.name) else folder
    return None

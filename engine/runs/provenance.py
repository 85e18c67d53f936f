"""`provenance.json`: what a run was started from, to understand and repeat it later."""

import platform
import sys

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.config.run import RunConfig
from engine.hardware.libraries import library_version
from engine.runs.peaks import MemoryFigures
from engine.runs.run import RunFolder

# What can change a result; versions are read from package metadata, so none of them is imported here.
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "tokenizers")


class Provenance(BaseModel):
    """Facts of the start, in addition to the configuration; written once.

    It repeats what lists show of the configuration, so they need not read thousands of YAML files.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    created: float = 0.0  # seconds since the epoch
    title: str = ""
    method: str = ""
    model: str = ""
    dataset: str = ""
    key: str | None = None  # of the start request; the same key never starts a second run
    loratory: str = ""
    python: str = ""
    platform: str = ""
    libraries: dict[str, str] = {}
    model_source: str | None = None  # what the configured model name meant: Hub id or folder name
    dataset_fingerprint: str | None = None  # sha256 of what the source held
    predicted_bytes: int | None = None  # memory that the estimate foretold for the process; what the queue waits for
    predicted_on: dict[str, int] = {}  # the same by name of a device, where `auto` may choose among GPUs that differ
    predicted_memory: MemoryFigures | None = None  # all that it foretold and that will be measured
    copied_from: str | None = None  # run whose configuration this one started from


def environment_facts() -> dict[str, object]:
    """The fields of `Provenance` that describe this installation."""
    return {
        "loratory": library_version("loratory") or "",
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": {name: version for name in _LIBRARIES if (version := library_version(name)) is not None},
    }


def describe_config(config: RunConfig) -> dict[str, object]:
    """The fields of `Provenance` that repeat the configuration."""
    return {
        "title": run_title(config),
        "method": config.method_name,
        "model": config.model.id,
        "dataset": config.dataset.source,
    }


def run_title(config: RunConfig) -> str:
    """What a run is called: its name, or one made of model, method and data."""
    if config.run.name:
        return config.run.name
    model = config.model.id.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    source = config.dataset.source.removeprefix("sample:").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return f"{model} · {config.method_name} · {source}"


def read_provenance(folder: RunFolder) -> Provenance:
    """Load it; where the file is missing or unreadable, nothing is known."""
    try:
        return Provenance.model_validate_json(folder.provenance.read_bytes())
    except (OSError, ValidationError):
        return Provenance()

"""`provenance.yaml`: what a run was started from, so that it can be understood and repeated later."""

import functools
import importlib.metadata
import platform
import sys

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import StorageError
from engine.runs.run import RunFolder

# What can change a result; versions are read from package metadata, so that none of them is imported here.
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "tokenizers")


class Provenance(BaseModel):
    """Facts of the start, beside the configuration; written once."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    created: float = 0.0  # seconds since the epoch
    key: str | None = None  # of the start request; the same key never starts a second run
    loratory: str = ""
    python: str = ""
    platform: str = ""
    libraries: dict[str, str] = {}
    model_source: str | None = None  # what the configured model name meant: Hub id or folder name
    dataset_fingerprint: str | None = None  # sha256 of what the source held
    predicted_bytes: int | None = None  # memory that the estimate foretold; what the queue waits for
    copied_from: str | None = None  # run whose configuration this one started from


def environment_facts() -> dict[str, object]:
    """The fields of `Provenance` that describe this installation."""
    return {
        "loratory": _version("loratory") or "",
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
    }


def provenance_to_yaml(provenance: Provenance) -> str:
    """Text of `provenance.yaml`."""
    return yaml.safe_dump(provenance.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def read_provenance(folder: RunFolder) -> Provenance:
    """Load it; where the file is missing or unreadable, nothing is known.

    Raises:
        StorageError: If the disk fails.
    """
    try:
        values = yaml.safe_load(folder.provenance.read_text(encoding="utf-8"))
        return Provenance.model_validate(values)
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError, ValidationError):
        return Provenance()
    except OSError as error:
        raise StorageError(
            f"provenance.yaml cannot be read ({error.strerror}).", "Check the permissions of the run's folder."
        ) from error


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

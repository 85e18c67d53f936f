"""Checkpoints as files: a manifest that tells a complete one from a damaged one. Reading needs no torch."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

MANIFEST = "MANIFEST.json"
TRAINER_STATE = "trainer_state.json"
ADAPTER_SUBFOLDER = "adapter"

_NAME = re.compile(r"^step-(\d+)$")
_BLOCK_BYTES = 1 << 20


class ManifestFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """`MANIFEST.json`: written last, so that a folder that has it was complete when it was written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    files: dict[str, ManifestFile]  # by path relative to the checkpoint, with forward slashes
    event_seq: int = 0  # last event of the log when it was written
    eval_loss: float | None = None  # held-out loss measured at this step
    best: bool = False  # the lowest held-out loss so far


class Checkpoint(NamedTuple):
    """A checkpoint that has a readable manifest."""

    step: int
    folder: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files.values())


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Checkpoints in a run's `checkpoints` folder, by step. Their content is not looked at; see `is_intact`."""
    found = []
    for path in folder.glob("step-*"):
        match = _NAME.match(path.name)
        manifest = read_manifest(path)
        if match and manifest is not None:
            found.append(Checkpoint(int(match[1]), path, manifest))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_intact(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose every file is as it was written; None where there is none."""
    return next((known for known in reversed(list_checkpoints(folder)) if is_intact(known)), None)


def is_intact(checkpoint: Checkpoint) -> bool:
    """Whether every file has the size and content that the manifest tells. Reads them all."""
    return not damage(checkpoint)


def damage(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint's files, in words; empty where nothing is."""
    wrong = []
    for name, told in checkpoint.manifest.files.items():
        path = checkpoint.folder / name
        try:
            size = path.stat().st_size
            if size != told.size_bytes:
                wrong.append(f"{name} has {size:,} bytes instead of {told.size_bytes:,}")
            elif sha256_of(path) != told.sha256:
                wrong.append(f"{name} has another content")
        except OSError:
            wrong.append(f"{name} is missing or cannot be read")
    return wrong


def read_manifest(folder: Path) -> Manifest | None:
    """A checkpoint's manifest; None where it is missing or torn."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def describe_files(folder: Path) -> dict[str, ManifestFile]:
    """Sizes and hashes of all files below a folder, for a manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            files[path.relative_to(folder).as_posix()] = ManifestFile(
                size_bytes=path.stat().st_size, sha256=sha256_of(path)
            )
    return files


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

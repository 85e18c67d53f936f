"""Checkpoints as files: a manifest that distinguishes a complete one from a damaged one. Reading needs no torch."""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from loratory.engine.data.step_plan import RowPlan
from loratory.engine.errors import StorageError
from loratory.engine.files import read_model, sha256_of

MANIFEST = "MANIFEST.json"
ADAPTER_SUBFOLDER = "adapter"

_NAME = re.compile(r"^step-(\d+)$")


class ManifestFile(BaseModel, frozen=True):
    """One file of a checkpoint."""

    size_bytes: int
    sha256: str
    mtime_ns: int | None = None  # when it was last changed, as it was written


class Manifest(BaseModel, frozen=True):
    """`MANIFEST.json`: written last, so a folder that has it was complete when it was written."""

    step: int
    files: dict[str, ManifestFile]  # by path relative to the checkpoint, with forward slashes
    event_seq: int = 0  # last event of the log when it was written
    eval_loss: float | None = None  # held-out loss measured at this step
    best: bool = False  # the lowest held-out loss so far
    compute_dtype: str | None = None  # what it was computed in; None where an older version wrote it
    row_plan: RowPlan | None = None  # None where an older version wrote it


class Checkpoint(NamedTuple):
    """A checkpoint that has a readable manifest."""

    step: int
    folder: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files.values())


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a run's `checkpoints` folder, by step, without checking their files."""
    manifests = ((step_of(path.name), path, read_manifest(path)) for path in folder.glob("step-*"))
    checkpoints = [
        Checkpoint(step, path, manifest)
        for step, path, manifest in manifests
        if step is not None and manifest is not None
    ]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def step_of(name: str) -> int | None:
    """Return the step in a folder's name; None where it is not a checkpoint's."""
    match = _NAME.match(name)
    return int(match[1]) if match else None


def offered_checkpoints(folder: Path, below: str = "") -> Iterator[Checkpoint]:
    """Return the undamaged checkpoints, newest first; only the files `below` a subfolder are checked.

    Results are cached until a file changes, so lists may call this often.
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        files = checkpoint.manifest.files.items()
        if all(
            _is_as_written(checkpoint.folder / name, expected) for name, expected in files if name.startswith(below)
        ):
            yield checkpoint


def damage(checkpoint: Checkpoint) -> list[str]:
    """Return the damage of a checkpoint's files in words, empty if there is none; reads all files.

    Raises:
        StorageError: If a file is there and cannot be read, which proves nothing about its content.
    """
    wrong = []
    for name, expected in checkpoint.manifest.files.items():
        path = checkpoint.folder / name
        try:
            size = path.stat().st_size
            if size != expected.size_bytes:
                wrong.append(f"{name} has {size:,} bytes instead of {expected.size_bytes:,}")
            elif sha256_of(path) != expected.sha256:
                wrong.append(f"the content of {name} has changed")
        except (FileNotFoundError, NotADirectoryError):
            wrong.append(f"{name} is missing")
        except OSError as error:
            raise cannot_read(f"{checkpoint.folder.name}/{name}", error) from error
    return wrong


def cannot_read(name: str, error: OSError) -> StorageError:
    """Return the error for a checkpoint's file that cannot be read: it is neither verified nor damaged."""
    return StorageError(
        f"{name} cannot be read ({error.strerror or error}).",
        "Check the disk and the folder's permissions, then resume; every checkpoint is kept.",
    )


def _is_as_written(path: Path, expected: ManifestFile) -> bool:
    try:
        now = path.stat()
        if now.st_size != expected.size_bytes:
            return False
        # What has the time of its writing is read when it is loaded: hashing would delay every list.
        is_known = now.st_mtime_ns == expected.mtime_ns
        return is_known or _known_sha256(os.fspath(path), now.st_mtime_ns) == expected.sha256
    except OSError:
        return False  # an unreadable checkpoint cannot be used either


@functools.lru_cache(maxsize=4096)
def _known_sha256(path: str, mtime_ns: int) -> str:  # noqa: ARG001 - a changed file is another one
    return sha256_of(Path(path))


def read_manifest(folder: Path) -> Manifest | None:
    """Return a checkpoint's manifest; None where it is missing, torn or cannot be read."""
    return read_model(folder / MANIFEST, Manifest)


def read_manifest_strictly(folder: Path) -> Manifest | None:
    """Return a checkpoint's manifest; None where it is torn.

    Raises:
        OSError: If it is missing or cannot be read.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError:
        return None


def describe_files(folder: Path) -> dict[str, ManifestFile]:
    """Sizes and hashes of all files below a folder, for a manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            facts = path.stat()
            files[path.relative_to(folder).as_posix()] = ManifestFile(
                size_bytes=facts.st_size, sha256=sha256_of(path), mtime_ns=facts.st_mtime_ns
            )
    return files

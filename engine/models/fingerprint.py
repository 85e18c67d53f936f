"""The identity of a model's weights: bytes, time and sha256 of each file, so a replaced base is noticed."""

import contextlib
import hashlib
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from loratory.engine.errors import StorageError
from loratory.engine.files import sha256_of, size_and_time, write_atomically
from loratory.engine.models.folder import weight_files

_SHA256 = re.compile(r"[0-9a-f]{64}")


class WeightsFile(BaseModel, frozen=True):
    """One file with weights, as it was when it was loaded."""

    name: str
    size_bytes: int
    mtime_ns: int
    sha256: str = ""  # empty where it is not known


def list_weights(folder: Path, name: str) -> tuple[WeightsFile, ...]:
    """Return the files with the weights of the model in a folder, without their hashes.

    Raises:
        ModelError: If it has none.
    """
    sizes = ((path.name, *size_and_time(path)) for path in weight_files(folder, name))
    return tuple(WeightsFile(name=file, size_bytes=size, mtime_ns=time) for file, size, time in sizes)


class BackgroundHash(threading.Thread):
    """Hashes weights in the background, as hundreds of megabytes a second would delay the start of a large model."""

    def __init__(self, files: Sequence[WeightsFile], folder: Path, cache: Path) -> None:
        super().__init__(daemon=True)  # a run that ends does not wait for it
        self.files = tuple(files)  # with their hashes once it has ended
        self._folder = folder
        self._cache = cache

    def run(self) -> None:
        """Hash each file that is still the one that was listed."""
        hashed = []
        for file in self.files:
            path = self._folder / file.name
            sha256 = sha256_once(path, self._cache)
            is_same = size_and_time(path) == (file.size_bytes, file.mtime_ns)
            hashed.append(file.model_copy(update={"sha256": sha256}) if is_same else file)
        self.files = tuple(hashed)


def changed_file(before: Sequence[WeightsFile], folder: Path, name: str, cache: Path) -> str:
    """Return the first file of a model's weights whose content differs from what was recorded; empty if none does.

    A file is read only where its time differs and its size does not, and only once; nothing recorded differs from nothing.

    Raises:
        ModelError: If the folder has no weights.
    """
    present = {file.name: file for file in list_weights(folder, name)}
    for file in before:
        now = present.pop(file.name, None)
        if now is None or now.size_bytes != file.size_bytes:
            return file.name
        may_differ = now.mtime_ns != file.mtime_ns and file.sha256
        if may_differ and sha256_once(folder / file.name, cache) not in ("", file.sha256):
            return file.name
    return next(iter(present), "") if before else ""


def sha256_once(path: Path, cache: Path) -> str:
    """Return the sha256 of a file, empty if it cannot be read; a file is read once.

    The Hub's cache names large files by it.
    """
    path = path.resolve()
    if path.parent.name == "blobs" and _SHA256.fullmatch(path.name):
        return path.name
    identity = f"{path}\0{size_and_time(path)}"
    known = cache / "weights" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):
        if _SHA256.fullmatch(text := known.read_text(encoding="ascii")):
            return text
    sha256 = ""
    with contextlib.suppress(OSError, StorageError):  # a cache that cannot be written costs time only
        sha256 = sha256_of(path)
        write_atomically(known, sha256, makes_folder=True)
    return sha256

"""Model folders that we make ourselves, from GGUF files for instance: once, by one process at a time, never seen half-made.

A folder is built aside, listed in its own manifest, synced and then renamed, so it is either absent or complete.
"""

import errno
import hashlib
import mmap
import os
import secrets
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from engine.errors import ModelError, ModelLimitError, StorageError
from engine.files import fsync_folder, fsync_tree, read_model, sha256_of
from engine.paths import LoratoryHome
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.liveness import FileLock
from engine.processes.messages import JsonObject

ModelPhase = Literal["waiting", "looking", "downloading", "unpacking", "converting", "verifying", "ready"]


class ModelProgress(NamedTuple):
    """A step of making a model available, with byte counts where they are known."""

    phase: ModelPhase
    message: str
    done_bytes: int | None = None
    total_bytes: int | None = None


OnModelProgress = Callable[[ModelProgress], None]


def ignore_progress(_: ModelProgress) -> None:
    """Report no progress."""


MANIFEST_NAME = "MANIFEST.json"
_HASHED_ON_EVERY_USE_BYTES = 16 * 1024**2  # tokenizer and configuration; hashing weights would cost a second each time


class FileRecord(BaseModel, frozen=True):
    """What one file of a finished folder must look like."""

    size_bytes: int
    sha256: str


class Manifest(BaseModel, frozen=True):
    """What belongs to a finished folder, and what it was made from."""

    v: int = 1
    made_from: str
    files: dict[str, FileRecord]


class Recipe(NamedTuple):
    """What a folder is made from; a folder made from anything else is rebuilt."""

    made_from: str  # names the source and the way it is converted
    needed_bytes: int  # free disk space that making it takes at its height


def is_prepared(folder: Path, recipe: Recipe) -> bool:
    """Return whether `folder` was finished from this recipe and still holds what it held then.

    Sizes are compared for all files, contents for all but the weights; takes a few milliseconds.
    """
    manifest = read_model(folder / MANIFEST_NAME, Manifest)
    if manifest is None or manifest.made_from != recipe.made_from or not manifest.files:
        return False
    return all(_matches(folder / name, record) for name, record in manifest.files.items())


def prepare_once(
    folder: Path, recipe: Recipe, build: Callable[[Path], None], on_progress: OnModelProgress = ignore_progress
) -> Path:
    """Make `folder` with `build` unless it is there already; returns it.

    `build` fills an empty folder that it is given, and may leave temporary files next to it, under the same parent.

    Raises:
        StorageError: If the disk is full or cannot be written; nothing is left behind then.
        EngineError: Whatever `build` raises; nothing is left behind then either.
    """
    if is_prepared(folder, recipe):
        return folder
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        if lock.is_held_by_another():
            on_progress(ModelProgress("waiting", "Another process is preparing this model; waiting for it."))
        with lock:
            if is_prepared(folder, recipe):  # the previous holder of the lock made it
                return folder
            for stale in folder.parent.glob(f".{folder.name}.making-*"):  # of an interrupted build; we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            require_space(folder.parent, recipe.needed_bytes, "Preparing this model", "set LORATORY_HOME")
            _make(folder, recipe, build, on_progress)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or "I/O error"
        fix = "Free some space, or set LORATORY_HOME to a folder that has it."
        raise StorageError(f"The model {folder.name} cannot be written ({reason}).", fix) from error
    return folder


def _make(folder: Path, recipe: Recipe, build: Callable[[Path], None], on_progress: OnModelProgress) -> None:
    workplace = folder.with_name(f".{folder.name}.making-{secrets.token_hex(6)}")
    workplace.mkdir(mode=0o700)
    try:
        incoming = workplace / folder.name
        incoming.mkdir(mode=0o700)
        build(incoming)
        on_progress(ModelProgress("verifying", "Checking what was written."))
        _write_manifest(incoming, recipe)
        if folder.exists():  # damaged, or of another recipe
            folder.rename(workplace / "replaced")
        incoming.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _write_manifest(folder: Path, recipe: Recipe) -> None:
    records = {
        path.relative_to(folder).as_posix(): FileRecord(size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    }
    manifest = Manifest(made_from=recipe.made_from, files=records)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    fsync_tree(folder)


def _matches(path: Path, record: FileRecord) -> bool:
    try:
        if path.stat().st_size != record.size_bytes:
            return False
        return record.size_bytes > _HASHED_ON_EVERY_USE_BYTES or sha256_of(path) == record.sha256
    except OSError:
        return False


def require_space(folder: Path, needed_bytes: int, subject: str, instead: str) -> None:
    """Require free disk space for what `subject` takes; `instead` explains how to use another disk.

    Raises:
        StorageError: If there is less.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        what = f"{subject} takes {needed_bytes / 1e9:.1f} GB; {free_bytes / 1e9:.1f} GB are free there."
        raise StorageError(what, f"Free some disk space, or {instead} to a folder on another disk.")


CONVERSION = "bfloat16-1"  # part of every recipe; changes when the conversion itself does


def prepare_gguf(gguf: Path, home: LoratoryHome, on_progress: OnModelProgress = ignore_progress) -> Path:
    """Return folder with the dense form of a person's own GGUF file, converted on first use.

    Raises:
        ModelError: If the file is not a readable GGUF file of a causal language model.
        StorageError: If the disk has no space for it.
    """
    try:
        with gguf.open("rb") as file:
            magic, status = file.read(4), os.fstat(file.fileno())
    except OSError as error:
        what = f"{gguf.name} cannot be read ({error.strerror})."
        raise ModelError(what, "Check its name and permissions.") from error
    if magic != b"GGUF":
        what = f"{gguf.name} is not a GGUF file (it starts with {magic!r})."
        raise ModelError(what, "Choose a file written by llama.cpp's tools.")
    identity = f"{gguf.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    is_own = bool(home.owner) and not gguf.resolve().is_relative_to(home.shared_models.resolve())
    folder = (home.own_models if is_own else home.models) / f"gguf-{gguf.stem[:60]}-{digest}"
    # bfloat16 takes four times the room of the four bits that most files hold, with their scales.
    recipe = Recipe(made_from=f"{gguf.name} {digest} {CONVERSION}", needed_bytes=status.st_size * 4)
    return prepare_once(folder, recipe, lambda target: convert_gguf(gguf, target, home, on_progress), on_progress)


# Several times what any model in use has: 262,144 tokens, 515,000 merges, 1,100 tensors (47,000 before experts were stacked).
_MAX_TENSORS = _MAX_KEYS = 100_000
_MAX_TOKENS = 1_000_000
_MAX_VALUES = 5_000_000  # of all arrays together
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by GGUF's types of numbers
_TEXT, _ARRAY = 8, 9


def check_gguf_counts(gguf: Path) -> None:
    """Walk the head of a GGUF file: a library would make objects of all that it lists.

    Raises:
        ModelLimitError: If it has more tensors, settings or tokens than any model.
        ModelError: If the file is damaged.
    """
    try:
        with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk_gguf_head(data, gguf.name)
    except OSError as error:
        raise ModelError(f"{gguf.name} cannot be read ({error.strerror}).", "Check the file's permissions.") from error
    except (struct.error, KeyError, ValueError, IndexError, OverflowError) as error:
        what = f"{gguf.name} cannot be converted: its head is damaged."
        raise ModelError(what, "Download or copy that file again.") from error


def _walk_gguf_head(data: mmap.mmap, name: str) -> None:
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    _require_at_most(_MAX_TENSORS, tensors, "tensors", name)
    _require_at_most(_MAX_KEYS, keys, "settings", name)
    place, values = 24, 0
    for _ in range(keys):
        (length,) = struct.unpack_from("<Q", data, place)
        key = data[place + 8 : place + 8 + min(length, 100)]
        (kind,) = struct.unpack_from("<I", data, place := place + 8 + length)
        place, count = place + 4, 1
        if kind == _ARRAY:
            kind, count = struct.unpack_from("<IQ", data, place)
            place, values = place + 12, values + count
            if key == b"tokenizer.ggml.tokens":
                _require_at_most(_MAX_TOKENS, count, "tokens", name)
            _require_at_most(_MAX_VALUES, values, "values in its settings", name)
        if kind == _TEXT:
            for _ in range(count):
                place += 8 + struct.unpack_from("<Q", data, place)[0]
        else:
            place += count * _VALUE_BYTES[kind]


def _require_at_most(most: int, number: int, things: str, name: str) -> None:
    if number > most:
        what = f"{name} cannot be converted: it has {number:,} {things}, and {most:,} are the most."
        raise ModelLimitError(what, "Use the original model.")


def convert_gguf(gguf: Path, target: Path, home: LoratoryHome, on_progress: OnModelProgress) -> None:
    """Fill `target` with the dense form of `gguf`, in a process of its own that ends with us.

    Raises:
        ModelError: If the file is damaged or of an architecture that cannot be read.
        WorkerError: If the process died, for instance because memory ran out.
    """
    check_gguf_counts(gguf)
    converter = JsonLinesProcess("engine.inspector.worker.convert_gguf", log_file=home.logs / "convert_gguf.log")

    def report(progress: JsonObject) -> None:
        on_progress(ModelProgress("converting", str(progress["message"])))

    # Each takes torch and a model's memory: in a lab, one at a time, in whichever process it was asked for.
    turn = FileLock(home.server / "convert_gguf.lock") if home.owner else None
    if turn is not None and not turn.acquire(timeout_seconds=0):
        on_progress(ModelProgress("waiting", "Waiting: another person's model is being converted."))
        turn.acquire()
    try:
        converter.call("convert", {"gguf": str(gguf), "target": str(target)}, on_progress=report)
    finally:
        converter.close(timeout_seconds=0.5)
        if turn is not None:
            turn.release()

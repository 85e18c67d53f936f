"""GGUF files: recognized by their first bytes, and converted once into a folder that everything else loads."""

import hashlib
from pathlib import Path

from engine.errors import ModelError
from engine.models.prepared import ModelProgress, OnModelProgress, Recipe, ignore_progress, prepare_once
from engine.paths import LoratoryHome
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.messages import JsonObject

CONVERSION = "bfloat16-1"  # part of every recipe; changes when the conversion itself does
_MAGIC = b"GGUF"
_GROWTH = 4  # bfloat16 against the four bits that most files hold, with their scales


def prepare_gguf(gguf: Path, home: LoratoryHome, on_progress: OnModelProgress = ignore_progress) -> Path:
    """Return folder with the dense form of a person's own GGUF file, converted on first use.

    Raises:
        ModelError: If the file is not a readable GGUF file of a causal language model.
        StorageError: If the disk has no space for it.
    """
    check_gguf(gguf)
    status = gguf.stat()
    identity = f"{gguf.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = home.models / f"gguf-{gguf.stem[:60]}-{digest}"
    recipe = Recipe(made_from=f"{gguf.name} {digest} {CONVERSION}", needed_bytes=status.st_size * _GROWTH)
    return prepare_once(folder, recipe, lambda target: convert_gguf(gguf, target, home, on_progress), on_progress)


def check_gguf(gguf: Path) -> None:
    """Make sure that this is a GGUF file.

    Raises:
        ModelError: If it is not, or cannot be read.
    """
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(
            f"{gguf.name} cannot be read ({error.strerror}).", "Check its name and permissions."
        ) from error
    if magic != _MAGIC:
        raise ModelError(
            f"{gguf.name} is not a GGUF file (it starts with {magic!r}).", "Choose a file written by llama.cpp's tools."
        )


def convert_gguf(gguf: Path, target: Path, home: LoratoryHome, on_progress: OnModelProgress) -> None:
    """Fill `target` with the dense form of `gguf`, in a process of its own that ends with us.

    Raises:
        ModelError: If the file is damaged or of an architecture that cannot be read.
        WorkerError: If the process died, for instance because memory ran out.
    """
    converter = JsonLinesProcess("engine.inspector.worker.convert_gguf", log_file=home.server / "convert_gguf.log")

    def report(progress: JsonObject) -> None:
        on_progress(ModelProgress("converting", str(progress["message"])))

    try:
        converter.call("convert", {"gguf": str(gguf), "target": str(target)}, on_progress=report)
    finally:
        converter.close(timeout_seconds=0.5)

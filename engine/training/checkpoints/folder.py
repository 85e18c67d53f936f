"""Complete trainer states on the disk: written to another folder, synced, described by a manifest, then renamed.

A checkpoint holds everything that the next step depends on: adapter, optimizer, schedule, random numbers and position in
the data. Nothing in it is pickled: tensors are safetensors, the rest is JSON.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loratory.engine.errors import RunError, StorageError
from loratory.engine.files import fsync_folder, fsync_tree, write_atomically
from loratory.engine.runs.checkpoints import (
    MANIFEST,
    Checkpoint,
    Manifest,
    cannot_read,
    damage,
    describe_files,
    list_checkpoints,
    read_manifest_strictly,
    step_of,
)
from loratory.engine.training import faults
from loratory.engine.training.checkpoints.state_files import load_trained
from loratory.engine.training.placement import ProcessGroup
from loratory.engine.training.reporting import RunEvents

_UNFINISHED_PREFIX = ".unfinished-"
_DOOMED_PREFIX = ".old-"
_DAMAGED_PREFIX = "damaged-"


def write_checkpoint(folder: Path, manifest: Manifest, fill: Callable[[Path], None]) -> Checkpoint:
    """Write one checkpoint, which exists whole or not at all even after a power cut.

    `fill` writes its files into the folder that it is given; the manifest comes without them.

    Raises:
        OSError: If the disk is full or fails; earlier checkpoints are untouched.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = folder / f"step-{manifest.step}"
    with _filled_aside(final, fill, "checkpoint") as aside:
        manifest = manifest.model_copy(update={"files": describe_files(aside)})
        fsync_tree(aside)
        faults.reached("checkpoint:on_disk", aside)
        write_atomically(aside / MANIFEST, manifest.model_dump_json(indent=1))
        faults.reached("checkpoint:described", aside)
        if final.exists():  # of an attempt that was superseded
            _remove(final)
        aside.rename(final)
        faults.reached("checkpoint:renamed", final)
        fsync_folder(folder)
    return Checkpoint(manifest.step, final, manifest)


@contextlib.contextmanager
def _filled_aside(target: Path, fill: Callable[[Path], None], point: str) -> Iterator[Path]:
    """Make and fill a folder next to the one that it becomes; it is removed if that fails."""
    aside = target.with_name(f"{_UNFINISHED_PREFIX}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(mode=0o700)
        faults.reached(f"{point}:begun", aside)
        fill(aside)
        faults.reached(f"{point}:filled", aside)
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def rotate(folder: Path, keep: int, best_step: int | None, enough_bytes: float = math.inf) -> int:
    """Delete all but the newest `keep` checkpoints and the best one, the oldest first, until that has freed enough.

    Returns:
        How many bytes that freed.
    """
    checkpoints, freed = list_checkpoints(folder), 0
    for checkpoint in checkpoints[: max(0, len(checkpoints) - keep)]:
        if checkpoint.step != best_step and freed < enough_bytes:
            freed += checkpoint.size_bytes
            _remove(checkpoint.folder)
            faults.reached("checkpoint:rotated", checkpoint.folder)
    return freed


def forget_damaged(folder: Path) -> None:
    """Delete damaged checkpoints, once a later one is complete."""
    for path in list(folder.glob(f"{_DAMAGED_PREFIX}step-*")):
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what interrupted writes and deletions left behind."""
    for path in [*folder.glob(f"{_UNFINISHED_PREFIX}*"), *folder.glob(f"{_DOOMED_PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Write another folder and replace `target` with it; it exists whole at nearly every moment.

    A folder cannot be renamed onto another: for an instant neither exists. `restore_folder` repairs a crash in between.

    Raises:
        OSError: If the disk is full or fails; the earlier folder is then still there.
    """
    old = target.with_name(f"{_DOOMED_PREFIX}{target.name}")
    try:
        with _filled_aside(target, fill, "folder") as aside:
            fsync_tree(aside)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            faults.reached("folder:between", target)
            aside.rename(target)
            fsync_folder(target.parent)
    finally:
        restore_folder(target)  # where it failed in between


def restore_folder(target: Path) -> None:
    """Bring back the earlier folder after an interrupted `replace_folder`, and remove what is left of it."""
    old = target.with_name(f"{_DOOMED_PREFIX}{target.name}")
    if not target.exists() and old.is_dir():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(target.with_name(f"{_UNFINISHED_PREFIX}{target.name}"), ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    # Out of the list first, in one step; its files then take their time.
    trash = checkpoint.with_name(f"{_DOOMED_PREFIX}{checkpoint.name}")
    shutil.rmtree(trash, ignore_errors=True)
    checkpoint.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def find_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that a run can resume from; None where none was written.

    Newer damaged ones are renamed, so they are not listed; `warn` gets a message about each before that.

    Raises:
        RunError: If all checkpoints are damaged. They are renamed, so the next attempt begins at step 0.
        StorageError: If a file cannot be read; then nothing is renamed.
    """
    damaged: list[tuple[Path, str]] = []
    result = None
    for step, path in _newest_first(folder):
        manifest = _manifest(path)
        checkpoint = Checkpoint(step, path, manifest) if manifest is not None else None
        wrong = damage(checkpoint) if checkpoint is not None else ["its manifest is missing or torn"]
        if not wrong:
            result = checkpoint
            break
        damaged.append((path, wrong[0]))
    for path, reason in damaged:
        aside = folder / f"{_DAMAGED_PREFIX}{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        warn(f"{path.name} is damaged ({reason}) and was skipped; it was renamed to {aside.name}.")
        path.rename(aside)
    if damaged and result is None:
        names = ", ".join(path.name for path, _ in damaged)
        fix = "Resume once more to restart at step 0, or first put a copy of one into the run's checkpoints folder."
        raise RunError(f"All checkpoints are damaged ({names}; {damaged[0][1]}).", fix)
    return result


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint that another process has found and verified.

    Raises:
        StorageError: If this process cannot read it.
    """
    manifest = _manifest(path)
    if manifest is None:
        fix = "Put the home folder where every process of the run reads it, then resume."
        raise StorageError(f"The first process resumes from {path.name}, which this process cannot see.", fix)
    return Checkpoint(manifest.step, path, manifest)


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    try:
        steps = [(step_of(path.name), path) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot_read(folder.name, error) from error
    return sorted(((step, path) for step, path in steps if step is not None), reverse=True)


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest_strictly(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise cannot_read(path.name, error) from error


def go_back_to_best(trainer: Any, last_step: int, folder: Path, events: RunEvents, group: ProcessGroup) -> None:
    """Give a model that has the weights of the last step its best ones; report that, or why the last ones stay.

    The trainer's progress has the step of the lowest held-out loss. The first process verifies the checkpoint for all.
    """
    best_step = trainer.progress.best_step
    if best_step in (None, last_step):
        return
    name = group.broadcast_from_main(lambda: _usable_checkpoint(best_step, folder, events))
    if not name:
        return
    load_trained(trainer.model, folder / name)
    events.status("saving", f"Going back to step {best_step:,}, whose held-out loss was the lowest.")


def _usable_checkpoint(step: int, folder: Path, events: RunEvents) -> str:
    """Return the name of the checkpoint of a step; empty where it cannot be used, which is reported."""
    match = next((checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step == step), None)
    try:
        wrong = "it is missing" if match is None else "; ".join(damage(match))
    except StorageError as error:
        wrong = error.what
    if match is not None and not wrong:
        return match.folder.name
    events.warn(
        f"The held-out loss was lowest at step {step:,}, whose checkpoint cannot be used ({wrong}); the run ends with the "
        "last weights.",
        "best_is_lost",
    )
    return ""

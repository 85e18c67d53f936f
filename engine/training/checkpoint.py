"""Complete trainer states on the disk: written aside, brought to the disk, described by a manifest, then renamed.

A checkpoint holds everything that the next step depends on: adapter, optimizer, schedule, random numbers and place in the
data. Nothing in it is pickled: tensors are safetensors, the rest is JSON.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.files import fsync_folder, write_atomically
from engine.runs.checkpoints import (
    MANIFEST,
    Checkpoint,
    Manifest,
    RowPlan,
    describe_files,
    list_checkpoints,
)
from engine.training import faults

_UNFINISHED_PREFIX = ".unfinished-"
_DOOMED_PREFIX = ".old-"
_DAMAGED_PREFIX = "damaged-"


@dataclass(frozen=True)
class CheckpointFacts:
    """What the manifest says beside the files."""

    step: int
    event_seq: int = 0
    eval_loss: float | None = None
    best: bool = False
    compute_dtype: str | None = None
    row_plan: RowPlan | None = None


def write_checkpoint(folder: Path, facts: CheckpointFacts, fill: Callable[[Path], None]) -> Checkpoint:
    """Write one checkpoint so that it is there whole or not at all, whenever the power goes.

    Args:
        folder: The run's `checkpoints` folder.
        facts: For the manifest.
        fill: Writes the files of the checkpoint into the folder that it is given.

    Raises:
        OSError: If the disk is full or fails; earlier checkpoints are untouched.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"step-{facts.step}"
    aside = folder / f"{_UNFINISHED_PREFIX}{name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(mode=0o700)
        faults.reached("checkpoint:begun", aside)
        fill(aside)
        faults.reached("checkpoint:filled", aside)
        manifest = Manifest(
            step=facts.step,
            files=describe_files(aside),
            event_seq=facts.event_seq,
            eval_loss=facts.eval_loss,
            best=facts.best,
            compute_dtype=facts.compute_dtype,
            row_plan=facts.row_plan,
        )
        _to_disk(aside)
        faults.reached("checkpoint:on_disk", aside)
        write_atomically(aside / MANIFEST, manifest.model_dump_json(indent=1))
        faults.reached("checkpoint:described", aside)
        final = folder / name
        if final.exists():  # of an attempt that was superseded
            _remove(final)
        aside.rename(final)
        faults.reached("checkpoint:renamed", final)
        fsync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Checkpoint(facts.step, final, manifest)


def rotate(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints, by step; the best one stays beside them."""
    known = list_checkpoints(folder)
    for checkpoint in known[: max(0, len(known) - keep)]:
        if checkpoint.step != best_step:
            _remove(checkpoint.folder)
            faults.reached("checkpoint:rotated", checkpoint.folder)


def name_aside(checkpoint: Path) -> Path:
    """A free name, beside it, under which a damaged checkpoint is offered to nobody."""
    aside, number = checkpoint.with_name(f"{_DAMAGED_PREFIX}{checkpoint.name}"), 2
    while aside.exists():
        aside, number = checkpoint.with_name(f"{_DAMAGED_PREFIX}{checkpoint.name}-{number}"), number + 1
    return aside


def forget_damaged(folder: Path) -> None:
    """Delete what was set aside as damaged; for whoever has just written a checkpoint that is whole."""
    for path in list(folder.glob(f"{_DAMAGED_PREFIX}step-*")):
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what interrupted writes and deletions left behind."""
    with contextlib.suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            if path.name.startswith((_UNFINISHED_PREFIX, _DOOMED_PREFIX)):
                shutil.rmtree(path, ignore_errors=True)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder aside and put it in the place of `target`, which is there whole at nearly every moment.

    A folder cannot be renamed onto another: for an instant neither is there. `restore_folder` mends a crash in it.

    Raises:
        OSError: If the disk is full or fails; the earlier folder is then still there.
    """
    aside = target.with_name(f"{_UNFINISHED_PREFIX}{target.name}")
    old = target.with_name(f"{_DOOMED_PREFIX}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(mode=0o700)
        faults.reached("folder:begun", aside)
        fill(aside)
        faults.reached("folder:filled", aside)
        _to_disk(aside)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        faults.reached("folder:between", target)
        aside.rename(target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        restore_folder(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Bring back the earlier folder after an interrupted `replace_folder`."""
    old = target.with_name(f"{_DOOMED_PREFIX}{target.name}")
    if not target.exists() and old.is_dir():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(target.with_name(f"{_UNFINISHED_PREFIX}{target.name}"), ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Out of the list first, in one step; its files then take whatever time they take."""
    doomed = checkpoint.with_name(f"{_DOOMED_PREFIX}{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Bring every file and folder below to the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        elif path.is_file():
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    fsync_folder(folder)

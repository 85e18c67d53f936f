"""Where an attempt goes on: at the newest checkpoint that is as it was written. Nothing is deleted to find it."""

from collections.abc import Callable
from pathlib import Path

from engine.errors import RunError, StorageError
from engine.runs.checkpoints import (
    Checkpoint,
    Manifest,
    RowOrder,
    RowPlan,
    cannot_read,
    damage,
    read_manifest_strictly,
    step_of,
)
from engine.training.checkpoint import name_aside
from engine.training.plan import PlanSettings
from engine.training.trainer import RANDOM_FILE


def find_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be gone on from; None where none was ever written.

    Newer ones that are damaged are set aside under another name, so that nobody is offered them.

    Args:
        folder: The run's `checkpoints` folder.
        warn: Told of each checkpoint that is passed over, before it is set aside.

    Raises:
        RunError: If there are checkpoints and all of them are damaged. They are set aside, so that a person who resumes
            once more begins anew.
        StorageError: If a file is there and cannot be read; then everything stays where it is.
    """
    damaged: list[tuple[Path, str]] = []
    found = None
    for step, path in _newest_first(folder):
        manifest = _manifest(path)
        wrong = ["its manifest is missing or torn"] if manifest is None else damage(Checkpoint(step, path, manifest))
        if manifest is not None and not wrong:
            found = Checkpoint(step, path, manifest)
            break
        damaged.append((path, wrong[0]))
    for path, reason in damaged:
        aside = name_aside(path)
        warn(f"{path.name} is damaged ({reason}) and was passed over; it is set aside as {aside.name}.")
        path.rename(aside)
    if damaged and found is None:
        names = ", ".join(path.name for path, _ in damaged)
        raise RunError(
            f"None of this run's checkpoints is as it was written ({names}; {damaged[0][1]}).",
            "Resume once more to begin anew at step 0, or first put a copy of one into the run's checkpoints folder.",
        )
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint that another process has found and verified.

    Raises:
        StorageError: If this process cannot read it.
    """
    manifest, step = _manifest(path), step_of(path.name)
    if manifest is None or step is None:
        raise StorageError(
            f"The first process resumes from {path.name}, which this process cannot see.",
            "Put the home folder where every process of the run reads it, then resume.",
        )
    return Checkpoint(step, path, manifest)


def row_plan(settings: PlanSettings, rows_sha256: str) -> RowPlan:
    """Return what a checkpoint pins about its rows."""
    return RowPlan(
        order=settings.order, rows_sha256=rows_sha256, batching=settings.batching, world_size=settings.world_size
    )


def settled_order(
    settings: PlanSettings, rows_sha256: str, checkpoint: Checkpoint | None, warn: Callable[[str], None]
) -> RowOrder:
    """Return the order of the run's rows: the checkpoint's, in which no row of its epoch is repeated or skipped.

    Args:
        settings: As this attempt would begin the run.
        rows_sha256: Of the training rows that this attempt has read.
        checkpoint: What the run continues from; None where it begins.
        warn: Gets a sentence where the checkpoint does not record its order.

    Raises:
        RunError: If the rows are not the same, or this number of processes cannot share the steps evenly.
    """
    if checkpoint is None:
        return settings.order
    pinned = checkpoint.manifest.row_plan
    if pinned is None:
        order, before = _unrecorded_order(settings, checkpoint)
        if not order.packing and settings.train_sampling_strategy == "group_by_length":
            warn(
                f"{checkpoint.folder.name} was written by an older version that did not record the order of its rows. If "
                "the run began on another kind of device, this epoch may repeat some rows and skip others."
            )
    else:
        order, before = pinned.order, pinned.world_size
        if pinned.rows_sha256 != rows_sha256:
            raise RunError(
                f"The training rows are not those of {checkpoint.folder.name}: the dataset or its tokenization changed.",
                "Restore the dataset and the library versions in provenance.json and resume, or start a new run.",
            )
    if order.rows_per_step % settings.world_size:
        raise RunError(
            f"This run was saved by {before} processes, and {settings.world_size} cannot share its steps evenly.",
            f"Go on with {before}, or with a number that divides {order.rows_per_step}.",
        )
    return order


def _unrecorded_order(settings: PlanSettings, checkpoint: Checkpoint) -> tuple[RowOrder, int]:
    """Return the order of an older version's checkpoint, as far as it is known, and how many processes wrote it."""
    before = len(list(checkpoint.folder.glob(RANDOM_FILE.format(rank="*")))) or settings.world_size  # each has one
    rows = settings.order.rows_per_step // settings.world_size * before
    return settings.order.model_copy(update={"rows_per_step": rows}), before


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

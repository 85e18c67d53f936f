"""Where an attempt goes on: at the newest checkpoint that is as it was written. Nothing is deleted to find it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.errors import RunError
from engine.runs.checkpoints import Checkpoint, Manifest, cannot_read, damage, read_manifest_strictly, step_of
from engine.training.assembly import Assembly
from engine.training.checkpoint import name_aside
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


def for_as_many_rows_a_step(assembly: Assembly, checkpoint: Checkpoint) -> Assembly:
    """Go on with steps of as many rows as those that were counted, whoever shares them now.

    Raises:
        RunError: If so many processes cannot share such a step evenly.
    """
    before = len(list(checkpoint.folder.glob(RANDOM_FILE.format(rank="*"))))  # each process has one
    now = assembly.setup.settings
    if before in (0, now.world_size):
        return assembly
    settings = now.after(before)
    if settings is None:
        raise RunError(
            f"This run was saved by {before} processes, and {now.world_size} cannot share its steps evenly.",
            f"Go on with {before}, or with a number that divides it.",
        )
    return replace(assembly, setup=replace(assembly.setup, settings=settings))


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

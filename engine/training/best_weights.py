"""Ending a run with the weights of its lowest held-out loss, where that is wanted and the last ones are not they."""

from pathlib import Path
from typing import Any

from engine.errors import StorageError
from engine.runs.checkpoints import damage, list_checkpoints
from engine.training.companions import Companions
from engine.training.reporting import RunEvents
from engine.training.trained_state import load_trained


def go_back_to_best(trainer: Any, last_step: int, folder: Path, events: RunEvents, companions: Companions) -> None:
    """Give the model its best weights; report that, or why the last ones stay.

    Args:
        trainer: At the end of its training; its progress says where the held-out loss was lowest.
        last_step: The step whose weights the model has.
        folder: The run's checkpoints.
        events: For the report.
        companions: The first process verifies the checkpoint for all.
    """
    best_step = trainer.progress.best_step
    if best_step in (None, last_step):
        return
    name = companions.first_decides(lambda: _usable_checkpoint(best_step, folder, events))
    if not name:
        return
    load_trained(trainer.model, folder / name)
    events.status("saving", f"Going back to step {best_step:,}, whose held-out loss was the lowest.")


def _usable_checkpoint(step: int, folder: Path, events: RunEvents) -> str:
    """Return the name of the checkpoint of a step; empty where it cannot be used, which is reported."""
    found = next((checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step == step), None)
    try:
        wrong = "it is missing" if found is None else "; ".join(damage(found))
    except StorageError as error:
        wrong = error.what
    if found is not None and not wrong:
        return found.folder.name
    events.warn(
        f"The held-out loss was lowest at step {step:,}, whose checkpoint cannot be used ({wrong}); the run ends with the "
        "last weights.",
        "best_is_lost",
    )
    return ""

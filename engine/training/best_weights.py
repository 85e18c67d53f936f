"""Ending a run with the weights of its lowest held-out loss, where that is wanted and the last ones are not they."""

from pathlib import Path
from typing import Any

from engine.config.training import TrainingConfig
from engine.errors import StorageError
from engine.runs.checkpoints import damage, list_checkpoints
from engine.training.callback import keeps_best
from engine.training.reporting import RunEvents
from engine.training.trained_state import load_trained


def go_back_to_best(
    model: Any, best_step: int | None, last_step: int, training: TrainingConfig, folder: Path, events: RunEvents
) -> None:
    """Give the model its best weights; says so, or why it cannot and keeps the last ones.

    Args:
        model: As the last step left it.
        best_step: Where the held-out loss was lowest; None where nothing was measured.
        last_step: The step whose weights the model has.
        training: Says whether the best are wanted.
        folder: The run's checkpoints.
        events: Told.
    """
    if not keeps_best(training) or best_step in (None, last_step):
        return
    found = next((checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step == best_step), None)
    try:
        wrong = "it is missing" if found is None else "; ".join(damage(found))
    except StorageError as error:
        wrong = error.what
    if found is None or wrong:
        events.warn(
            f"The held-out loss was lowest at step {best_step:,}, whose checkpoint cannot be used ({wrong}); the run ends "
            "with the last weights.",
            "best_is_lost",
        )
        return
    load_trained(model, found.folder)
    events.status("saving", f"Going back to step {best_step:,}, whose held-out loss was the lowest.")

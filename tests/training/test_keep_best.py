"""A run that cannot end with its best weights reports it."""

from types import SimpleNamespace

import pytest

from loratory.engine.runs.checkpoints import Manifest
from loratory.engine.runs.run import RunFolder
from loratory.engine.training.callbacks import TrainingProgress
from loratory.engine.training.checkpoints.folder import go_back_to_best, write_checkpoint
from loratory.engine.training.placement import SINGLE_PROCESS


class Events:
    def __init__(self):
        self.warnings = []
        self.statuses = []

    def warn(self, message, code=""):
        self.warnings.append((code, message))

    def status(self, phase, message, total_steps=None):
        self.statuses.append(message)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (4, 6):
        write_checkpoint(
            folder.checkpoints, Manifest(step=step, files={}), lambda to: (to / "weights").write_text("weights")
        )
    return folder


def end_with_the_best_of(folder, monkeypatch, best_step):
    """End a run of six steps; return its events and the checkpoints that were loaded."""
    loaded = []
    monkeypatch.setattr(
        "loratory.engine.training.checkpoints.folder.load_trained", lambda _model, path: loaded.append(path.name)
    )
    events = Events()
    trainer = SimpleNamespace(model=None, progress=TrainingProgress(best_step=best_step))
    go_back_to_best(trainer, 6, folder.checkpoints, events, SINGLE_PROCESS)
    return events, loaded


def test_nothing_is_reported_where_the_last_weights_are_the_best(folder, monkeypatch):
    events, loaded = end_with_the_best_of(folder, monkeypatch, 6)

    assert (loaded, events.warnings, events.statuses) == ([], [], [])


@pytest.mark.parametrize(
    ("harm", "message_part"),
    [
        (lambda weights: weights.write_text("weighty"), "the content of weights has changed"),
        (lambda weights: weights.unlink(), "weights is missing"),
        (lambda weights: weights.parent.rename(weights.parent.with_name("gone")), "it is missing"),
        (lambda weights: (weights.unlink(), weights.symlink_to(weights)), "step-4/weights cannot be read"),
    ],
    ids=["changed", "lost", "gone", "unreadable"],
)
def test_best_weights_that_cannot_be_used_are_warned_of(harm, message_part, folder, monkeypatch):
    harm(folder.checkpoint(4) / "weights")

    events, loaded = end_with_the_best_of(folder, monkeypatch, 4)

    assert loaded == []
    ((code, message),) = events.warnings
    assert code == "best_is_lost"
    assert "lowest at step 4" in message
    assert message_part in message
    assert "ends with the last weights" in message

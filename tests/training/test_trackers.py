"""Trackers that the settings name get the curves, and a failing one costs a warning."""

import sys
from types import SimpleNamespace

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.training.trackers import TENSORBOARD_FOLDER, Tracker, Trackers, start_trackers


def config_with(*names):
    return config_from_mapping(
        {"model": {"id": "x"}, "dataset": {"source": "y"}, "training": {"report_to": list(names)}}
    )


class Broken:
    def __init__(self, fails_at):
        self.fails_at, self.calls = fails_at, []

    def log(self, step, values):
        self.calls.append((step, dict(values)))
        if step == self.fails_at:
            raise ConnectionError("no network, token=abc")

    def finish(self):
        self.calls.append("finished")


def read_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_a_tracker_that_fails_is_removed_with_a_warning_without_secrets():
    warnings = []
    broken, sound = Broken(fails_at=2), Broken(fails_at=None)
    started = {"wandb": Tracker(broken.log, broken.finish), "tensorboard": Tracker(sound.log, sound.finish)}
    trackers = Trackers(started, lambda message, code: warnings.append((code, message)))

    for step in (1, 2, 3):
        trackers.log(step, {"loss": 1.5, "grad_norm": None})
    trackers.finish()

    assert broken.calls == [(1, {"loss": 1.5}), (2, {"loss": 1.5})]
    assert [call for call in sound.calls if call != "finished"] == [(step, {"loss": 1.5}) for step in (1, 2, 3)]
    assert sound.calls[-1] == "finished"
    assert [code for code, _ in warnings] == ["tracker"]
    assert "wandb" in warnings[0][1]
    assert "abc" not in warnings[0][1]


def test_a_tracker_that_does_not_start_leaves_the_others(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    warnings = []

    trackers = start_trackers(
        config_with("wandb", "tensorboard"), tmp_path, "faq", lambda message, code: warnings.append(message)
    )
    trackers.log(1, {"train/loss": 2.5})
    trackers.finish()

    assert len(warnings) == 1
    assert "wandb" in warnings[0]
    assert read_scalars(tmp_path / TENSORBOARD_FOLDER) == {"train/loss": [(1, 2.5)]}


def test_trackio_stays_on_this_machine_and_is_never_public(tmp_path, monkeypatch):
    started = {}
    fake = SimpleNamespace(
        init=lambda **settings: started.update(settings), log=lambda *_, **__: None, finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)

    start_trackers(config_with("trackio"), tmp_path, "faq", lambda message, code: pytest.fail(message)).finish()

    assert started["private"] is True
    assert started.get("space_id") is None

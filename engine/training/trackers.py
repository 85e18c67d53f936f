"""Curves for the trackers that `training.report_to` names, in addition to our log: TensorBoard, Trackio, Weights & Biases.

A tracker that fails costs the run a warning and nothing else. transformers' own integrations are not used: an error in one
ends the run, the measurement before the first step does not reach them, Trackio's may publish a Space, and W&B's uploads
checkpoints where an environment variable is set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.run import RunConfig
from loratory.engine.config.training import TrackerName

PROJECT = "loratory"
TENSORBOARD_FOLDER = "tensorboard"  # in the run's folder
Warn = Callable[[str, str], None]


@dataclass(frozen=True)
class Tracker:
    """Receives figures: `log` sends those of one step, `finish` writes what is still buffered and closes."""

    log: Callable[[int, Mapping[str, float]], object]
    finish: Callable[[], object]


class Trackers:
    """All trackers of one run; one that fails is removed with a warning, which has a message and a code."""

    def __init__(self, trackers: Mapping[TrackerName, Tracker], warn: Warn) -> None:
        self._trackers = dict(trackers)
        self._warn = warn

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send figures of one step; those that are None are left out."""
        present_values = {name: value for name, value in values.items() if value is not None}
        for name in list(self._trackers):
            self._attempt(name, lambda tracker: tracker.log(step, present_values))

    def finish(self) -> None:
        """Finish every tracker."""
        for name in list(self._trackers):
            self._attempt(name, lambda tracker: tracker.finish())
        self._trackers.clear()

    def _attempt(self, name: TrackerName, act: Callable[[Tracker], object]) -> None:
        try:
            act(self._trackers[name])
        except Exception as error:  # a foreign library or service must not end a run
            del self._trackers[name]
            self._warn(
                f"{name} failed ({type(error).__name__}) and gets no more figures; the run continues.", "tracker"
            )


def start_trackers(config: RunConfig, folder: Path, title: str, warn: Warn) -> Trackers:
    """Start the trackers that `training.report_to` names; each gets the run's settings, and its title as a name."""
    trackers: dict[TrackerName, Tracker] = {}
    for name in config.training.report_to:
        try:
            trackers[name] = _STARTERS[name](config, folder, title)
        except Exception as error:
            warn(f"{name} did not start ({type(error).__name__}); the run continues without it.", "tracker")
    return Trackers(trackers, warn)


def _start_tensorboard(config: RunConfig, folder: Path, title: str) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER))
    writer.add_text(title, f"```yaml\n{config_to_yaml(config)}\n```")

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _start_trackio(config: RunConfig, _folder: Path, title: str) -> Tracker:
    """Start Trackio on this machine, or on the Space of TRACKIO_SPACE_ID, which stays private."""
    import trackio

    trackio.init(project=PROJECT, name=title, config=config.model_dump(mode="json"), private=True)
    return Tracker(lambda step, values: trackio.log(dict(values), step=step), trackio.finish)


def _start_wandb(config: RunConfig, folder: Path, title: str) -> Tracker:
    import wandb

    run = wandb.init(
        project=PROJECT, name=title, dir=str(folder), config=config.model_dump(mode="json"), save_code=False
    )
    return Tracker(lambda step, values: run.log(dict(values), step=step), run.finish)


_STARTERS: Mapping[TrackerName, Callable[[RunConfig, Path, str], Tracker]] = {
    "tensorboard": _start_tensorboard,
    "trackio": _start_trackio,
    "wandb": _start_wandb,
}

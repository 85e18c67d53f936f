"""Curves sent to trackers beside our own log, where a person asked for them: TensorBoard, Trackio, Weights & Biases.

A tracker that fails costs the run nothing but a warning.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.config.run import RunConfig
from engine.config.training import TrackerName

PROJECT = "loratory"
TENSORBOARD_FOLDER = "tensorboard"  # in the run's folder

Warn = Callable[[str, str], None]


class Tracker(Protocol):
    """Where figures go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send figures of one step."""

    def finish(self) -> None:
        """No more comes."""


class Trackers:
    """All trackers of one run; one that fails is let go with a warning.

    Args:
        trackers: By name.
        warn: Told in words, with a code.
    """

    def __init__(self, trackers: Mapping[TrackerName, Tracker], warn: Warn) -> None:
        self._trackers = dict(trackers)
        self._warn = warn

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send figures of one step; what is None is left out."""
        known = {name: value for name, value in values.items() if value is not None}
        for name in list(self._trackers):
            self._attempt(name, lambda tracker: tracker.log(step, known))

    def finish(self) -> None:
        """Let every tracker write down what it still holds."""
        for name in list(self._trackers):
            self._attempt(name, lambda tracker: tracker.finish())
        self._trackers.clear()

    def _attempt(self, name: TrackerName, act: Callable[[Tracker], None]) -> None:
        try:
            act(self._trackers[name])
        except Exception as error:
            # Libraries of others, and services of others: whatever they raise must not end a run.
            del self._trackers[name]
            self._warn(f"{name} failed ({type(error).__name__}) and gets no more figures; the run goes on.", "tracker")


def start_trackers(config: RunConfig, folder: Path, title: str, warn: Warn) -> Trackers:
    """Start what `training.report_to` names.

    Args:
        config: Of the run; goes along as the run's settings.
        folder: The run's folder.
        title: What the run is called.
        warn: Told where one does not start.
    """
    started: dict[TrackerName, Tracker] = {}
    for name in config.training.report_to:
        try:
            started[name] = _STARTERS[name](config, folder, title)
        except Exception as error:
            warn(f"{name} did not start ({type(error).__name__}); the run goes on without it.", "tracker")
    return Trackers(started, warn)


class _TensorBoard:
    def __init__(self, config: RunConfig, folder: Path, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER))
        self._writer.add_text(title, f"```yaml\n{_settings(config)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class _Trackio:
    """Kept on this machine: a Space is made for nobody who has not named one in TRACKIO_SPACE_ID, and never a public one."""

    def __init__(self, config: RunConfig, folder: Path, title: str) -> None:
        del folder
        import trackio

        self._trackio: Any = trackio
        trackio.init(project=PROJECT, name=title, config=config.model_dump(mode="json"), private=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def finish(self) -> None:
        self._trackio.finish()


class _WeightsAndBiases:
    def __init__(self, config: RunConfig, folder: Path, title: str) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=PROJECT, name=title, dir=str(folder), config=config.model_dump(mode="json"), save_code=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


_STARTERS: Mapping[TrackerName, Callable[[RunConfig, Path, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _WeightsAndBiases,
}


def _settings(config: RunConfig) -> str:
    from engine.config.load import config_to_yaml

    return config_to_yaml(config)

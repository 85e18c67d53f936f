"""An exact script: asked for here, written in a process of its own, which reads model and data as a run does."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from engine.chat.contract import OnProgress, Progress
from engine.config.run import RunConfig
from engine.data.hub import hub_access
from engine.export.contract import ExportResult
from engine.export.folder import made_aside
from engine.hardware.device_job import DeviceJob
from engine.hardware.processor import describe_processor
from engine.paths import LoratoryHome
from engine.runs.provenance import run_title

WORKER_MODULE = "engine.export.worker.main"


class ScriptOrder(BaseModel, frozen=True):
    """What the process is asked for."""

    config: RunConfig
    folder: Path  # empty, to be filled
    run: Path | None = None  # the run's folder; None for a configuration


@dataclass(eq=False)
class ScriptJob:
    """Writes the exact form of a run, or of a configuration; can be stopped from another thread."""

    home: LoratoryHome
    config: RunConfig
    folder: Path  # must not exist, or be empty
    run_folder: Path | None = None
    _stop_requested: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, on_progress: OnProgress = lambda _: None) -> ExportResult:
        """Write the folder; on any error nothing of it is left.

        Raises:
            DatasetError: If the data cannot be read, or is not what the run was trained on.
            ModelError: If the model cannot be found or read.
            RunError: If TRL's trainer of the objective cannot train this adapter.
            StorageError: If the folder is not empty or cannot be written.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        job = DeviceJob(
            home=self.home, module=WORKER_MODULE, purpose="export", title=run_title(self.config),
            device=describe_processor(), holds_device=False, access=hub_access(self.config.model, self.config.dataset),
            model=self.config.model.id,
        )  # fmt: skip
        with made_aside(self.folder) as aside:
            order = ScriptOrder(config=self.config, folder=aside, run=self.run_folder)
            on_progress(Progress(phase="starting", message="Starting a process for the script."))
            report: Callable[[dict[str, object]], None] = lambda value: on_progress(Progress.model_validate(value))  # noqa: E731
            answer = job.run("script", order.model_dump(mode="json"), self._stop_requested, report, lambda _: None)
        return ExportResult.model_validate({**answer, "path": self.folder})

    def stop(self) -> None:
        """End it within seconds; nothing of it is left."""
        self._stop_requested.set()

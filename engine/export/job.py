"""Export a run or an adapter: check the request here, then write the folder in a separate process."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from loratory.engine.chat.contract import JobProgress, OnProgress
from loratory.engine.chat.target import LoadPlan, PlannedWeights, plan_load
from loratory.engine.config.run import RunConfig, RunSection
from loratory.engine.data.hub import hub_access
from loratory.engine.errors import ModelError
from loratory.engine.export.contract import ExportOrder, ExportRequest, ExportResult
from loratory.engine.export.folder import staged_folder
from loratory.engine.export.kinds import COMPRESSED, KINDS
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.devices import choose_device
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.models.folder import ModelPart, family_in
from loratory.engine.models.source import find_model
from loratory.engine.paths import AllowedPaths, LoratoryHome, typed_path
from loratory.engine.places import machine_of
from loratory.engine.runs.provenance import run_title
from loratory.engine.runs.run import RunFolder

WORKER_MODULE = "loratory.engine.export.worker.main"


@dataclass(eq=False)
class FolderJob:
    """Fills a folder in a separate process; can be stopped from another thread."""

    home: LoratoryHome
    _stop_requested: threading.Event = field(default_factory=threading.Event, init=False)

    def stop(self) -> None:
        """Stop within seconds; no files are left."""
        self._stop_requested.set()

    def _fill(
        self, job: DeviceJob, method: str, order: BaseModel, folder: Path, on_progress: OnProgress
    ) -> ExportResult:
        """Have the process fill a staging folder, then rename it to that of the order; on any error no files are left."""
        with staged_folder(folder) as staging:
            answer = job.run(
                method,
                order.model_copy(update={"folder": staging}).model_dump(mode="json"),
                self._stop_requested,
                lambda value: on_progress(JobProgress.model_validate(value)),
                lambda holder: on_progress(JobProgress(phase="starting", message=holder.why_wait)),
            )
        return ExportResult.model_validate({**answer, "path": folder})


@dataclass(eq=False)
class ExportJob(FolderJob):
    """One export."""

    request: ExportRequest
    choose: Callable[[RunSection], Device] = choose_device  # for the verification

    def run(self, on_progress: OnProgress = lambda _: None) -> ExportResult:
        """Write the folder and verify it; on any error no files are left.

        Raises:
            RunError: If the run has no adapter yet, or the checkpoint does not exist.
            ModelError: If this kind of export does not support the adapter.
            DeviceError: If the device for the verification is in use.
            StorageError: If the folder is not empty or cannot be written, or the disk is too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        target, settings = self.request.target, self.request.settings
        folder = self._folder()
        plan = plan_load(target, self.home)
        trained = require_trained(plan)
        family = family_in(find_model(plan.model, self.home, ModelPart.CONFIG), plan.model.shown_name)
        KINDS[settings.kind].require(trained.traits, family, settings, self.request.llama_cpp)
        assert target.tuned is not None  # `require_trained` refuses a base alone
        machine, run = machine_of(self.home, target.where, target.trained_folder), run_in(target.tuned.folder)
        device = machine.device if machine is not None else self.choose(RunSection())
        job = DeviceJob(
            home=self.home,
            module=WORKER_MODULE,
            purpose="export",
            title=trained.name,
            device=device,
            holds_device=settings.verify or settings.kind == COMPRESSED.name,  # which computes with rows
            access=hub_access(plan.model),
            model=plan.model.id,
            machine=machine,
        )
        starts = machine.wait_message if machine is not None else "Starting a process for the export."
        on_progress(JobProgress(phase="starting", message=starts))
        order = ExportOrder(
            plan=plan.model_copy(update={"second": None}),
            name=folder.name,
            folder=folder,
            settings=settings,
            device=device,
            run=run,
            llama_cpp=self.request.llama_cpp,
        )
        return self._fill(job, "export", order, folder, on_progress)

    def _folder(self) -> Path:
        folder = typed_path(self.request.folder).resolve()
        pushes = self.home.cache.resolve() / "pushes"  # a push prepares its export there
        if (allowed := AllowedPaths.for_home(self.home)) is not None and pushes not in folder.parents:
            return allowed.write(self.request.folder)
        return folder


def require_trained(plan: LoadPlan) -> PlannedWeights:
    """Return the trained weights of a plan.

    Raises:
        ModelError: If the plan has only a base model.
    """
    if plan.tuned is None:
        raise ModelError("Nothing to export: this model has no adapter.", "Choose a run or an adapter.")
    return plan.tuned


def run_in(folder: Path) -> Path | None:
    """Return the folder if it holds a run; None for an adapter without a run."""
    return folder if RunFolder(folder).config.is_file() else None


class ScriptOrder(BaseModel, frozen=True):
    """The request for the worker process."""

    config: RunConfig
    folder: Path  # that of the export; an empty one next to it for the worker
    run: Path | None = None  # the run's folder; None for a configuration


@dataclass(eq=False)
class ScriptJob(FolderJob):
    """Writes the exact form of a run, or of a configuration."""

    config: RunConfig
    folder: Path  # must not exist, or be empty
    run_folder: Path | None = None

    def run(self, on_progress: OnProgress = lambda _: None) -> ExportResult:
        """Write the folder; on any error no files are left.

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
        on_progress(JobProgress(phase="starting", message="Starting a process for the script."))
        order = ScriptOrder(config=self.config, folder=self.folder, run=self.run_folder)
        return self._fill(job, "script", order, self.folder, on_progress)

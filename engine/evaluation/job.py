"""Measures a run on its held-out rows: checked here, done in a process of its own, saved with the run."""

import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from engine.chat.target import plan_load
from engine.config.run import RunSection
from engine.data.hub import hub_access
from engine.errors import RunError, StorageError
from engine.evaluation.contract import (
    DataThen,
    EvaluationOrder,
    EvaluationProgress,
    EvaluationRequest,
    EvaluationResult,
    evaluation_file,
)
from engine.files import write_atomically
from engine.hardware.device import Device
from engine.hardware.device_job import DeviceJob
from engine.hardware.devices import choose_device
from engine.paths import LoratoryHome
from engine.runs.history.reader import read_history
from engine.runs.provenance import read_provenance
from engine.runs.run import RunFolder

WORKER_MODULE = "engine.evaluation.worker.main"

OnEvaluationProgress = Callable[[EvaluationProgress], None]


class EvaluationJob:
    """One evaluation; can be stopped from another thread.

    Args:
        home: The Loratory home.
        request: What is wanted.
        choose: Picks the device; `engine.hardware.devices.choose_device` unless a test says otherwise.
    """

    def __init__(
        self, home: LoratoryHome, request: EvaluationRequest, choose: Callable[[RunSection], Device] = choose_device
    ) -> None:
        self._home = home
        self._request = request
        self._choose = choose
        self._stopped = threading.Event()

    def run(self, on_progress: OnEvaluationProgress = lambda _: None) -> EvaluationResult:
        """Measure, and keep the result in the run's folder, where `read_evaluation` finds it.

        Raises:
            RunError: If this is not a run, it has no adapter yet, or the checkpoint does not exist.
            DatasetError: If its data is gone, or it held no rows out.
            ModelError: If base and adapter cannot be loaded together.
            DeviceError: If the device is in use, or its memory too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        order, file = self._order()
        assert order.plan.tuned is not None
        job = DeviceJob(
            home=self._home,
            module=WORKER_MODULE,
            purpose="evaluation",
            title=order.plan.tuned.name,
            device=order.device,
            access=hub_access(order.plan.model, order.run.dataset),
        )

        on_progress(EvaluationProgress(message="Starting a process for the evaluation."))
        answer = job.run(
            "evaluate",
            order.model_dump(mode="json"),
            self._stopped,
            lambda value: on_progress(EvaluationProgress.model_validate(value)),
            lambda present: on_progress(EvaluationProgress(message=present.why_wait)),
        )
        result = EvaluationResult.model_validate(answer)
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The result cannot be kept ({error.strerror}).", "Free some space, or check the run's folder."
            ) from error
        write_atomically(file, result.model_dump_json(indent=1))
        return result

    def stop(self) -> None:
        """End it within seconds; nothing is kept of it."""
        self._stopped.set()

    def _order(self) -> tuple[EvaluationOrder, Path]:
        target = self._request.target
        chosen = target.tuned
        if chosen is None or not RunFolder(chosen.folder).config.is_file():
            raise RunError(
                "Only a run can be evaluated: it alone knows which rows it was not trained on.", "Choose a run."
            )
        run = RunFolder(chosen.folder)
        order = EvaluationOrder(
            plan=plan_load(target),
            run=run.read_config(),
            settings=self._request.settings,
            device=self._choose(RunSection(devices=target.devices)),
            data_then=_data_then(run),
        )
        return order, evaluation_file(chosen.folder, chosen.checkpoint)


def _data_then(run: RunFolder) -> DataThen:
    report = read_history(run.events).data_report
    return DataThen(
        train_rows=report.train_rows if report is not None else None,
        held_out_rows=report.eval_rows if report is not None else None,
        fingerprint=read_provenance(run).dataset_fingerprint,
    )


def read_evaluation(run: Path, checkpoint: str | None = None) -> EvaluationResult | None:
    """Return what was measured last on a run or one of its checkpoints; None where nothing was."""
    try:
        return EvaluationResult.model_validate_json(evaluation_file(run, checkpoint).read_bytes())
    except (OSError, ValidationError):
        return None

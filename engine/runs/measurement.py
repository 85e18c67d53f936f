"""One worst step, really taken: the longest rows, the full batch, by the very worker that would train."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig, RunSection
from engine.errors import DeviceError, RunError, WorkerError
from engine.hardware.device import Device
from engine.hardware.devices import choose_devices
from engine.hardware.hold import hold_devices
from engine.hardware.lease import LeaseBook, LeaseHolder, lease_name
from engine.memory.result import MemoryEstimate
from engine.paths import LoratoryHome
from engine.processes.identity import ProcessIdentity
from engine.processes.json_lines import CancelledRequestError
from engine.runs.event_log import read_events
from engine.runs.events import Event, FailedEvent, MemoryEvent, StatusEvent, StepEvent
from engine.runs.run import Run, RunState
from engine.runs.store import RunStore
from engine.runs.worker_command import WorkerOrder, start_worker, training_command

OWNER = "measurements"  # whose runs nobody lists and no supervisor starts

_STEPS = 2  # the second one has the optimizer's state
_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 75.0  # an idle chat lets go of its device within a minute
# Whatever the tokenizer, each of these words is at least one token.
_WORDS = "memory tensor adapter gradient layer token batch length weight rank ".split()


class MeasuredStep(BaseModel):
    """What two optimizer steps took, beside what was predicted. On a CPU, memory is that of the whole process."""

    model_config = ConfigDict(frozen=True)

    device_name: str
    measured_bytes: int  # to be compared with `predicted_bytes`
    predicted_bytes: int
    bound_bytes: int  # nine runs in ten were predicted to stay below
    measures_process: bool  # else what PyTorch's allocator has reserved
    allocated_bytes: int | None  # tensors alone, where the device tells
    step_seconds: float
    rows: int  # of one pass
    tokens: int  # of each row

    @property
    def error(self) -> float:
        """Relative, positive where the prediction was too high."""
        return self.predicted_bytes / self.measured_bytes - 1


class MeasurementProgress(BaseModel):
    """How far it has come."""

    model_config = ConfigDict(frozen=True)

    message: str
    fraction: float | None = None


OnMeasurementProgress = Callable[[MeasurementProgress], None]


class MeasurementJob:
    """Takes the worst steps of a configuration in a process of its own; nothing of them is kept.

    Args:
        home: The Loratory home.
        config: What would be trained.
        estimate: What was predicted for it.
        choose: Picks the devices; `engine.hardware.devices.choose_devices` unless a test says otherwise.
    """

    def __init__(
        self,
        home: LoratoryHome,
        config: RunConfig,
        estimate: MemoryEstimate,
        choose: Callable[[RunSection], tuple[Device, ...]] = choose_devices,
    ) -> None:
        self._home = home
        self._config = config
        self._estimate = estimate
        self._choose = choose
        self._stopped = threading.Event()

    def run(self, on_progress: OnMeasurementProgress = lambda _: None) -> MeasuredStep:
        """Measure.

        Raises:
            DeviceError: If the device is held by somebody else, or its memory was not enough.
            RunError: If the worker gave up for another reason; says which.
            WorkerError: If the process ended without a word.
            CancelledRequestError: If it was stopped.
            StorageError: If the home cannot be written.
        """
        devices = self._choose(self._config.run)
        store = RunStore(self._home, OWNER)
        store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        rows = store.folder / f"rows-{time.time_ns()}.jsonl"
        _write_rows(rows, self._config)
        run = store.create(worst_case(self._config, rows))
        process: Popen[bytes] | None = None
        try:
            on_progress(MeasurementProgress(message="Starting a process for the measurement."))
            run.folder.write_state(RunState(state="starting", attempt=1))  # it has no supervisor
            process = start_worker(WorkerOrder(run, run.folder.read_config(), devices, 1), training_command)
            self._hold(process, devices, on_progress)
            return self._follow(process, run, devices[0], on_progress)
        finally:
            if process is not None:
                _end(process)
            rows.unlink(missing_ok=True)
            shutil.rmtree(run.folder.path, ignore_errors=True)

    def stop(self) -> None:
        """End it soon; nothing is kept."""
        self._stopped.set()

    def _hold(self, process: Popen[bytes], devices: tuple[Device, ...], on_progress: OnMeasurementProgress) -> None:
        identity = ProcessIdentity.of(process.pid)
        if identity is None:
            raise WorkerError("The process for the measurement ended at once.", "Free some memory, then try again.")
        holder = LeaseHolder(purpose="measurement", title="one step", process=identity)
        names = [lease_name(device) for device in devices]
        hold_devices(
            LeaseBook(self._home),
            names,
            holder,
            _PATIENCE_SECONDS,
            lambda present: on_progress(MeasurementProgress(message=present.why_wait)),
        )

    def _follow(
        self, process: Popen[bytes], run: Run, device: Device, on_progress: OnMeasurementProgress
    ) -> MeasuredStep:
        offset, steps = 0, list[StepEvent]()
        while True:
            ended = process.poll() is not None  # asked first, so that what is read afterwards is all there is
            batch = read_events(run.folder.events, offset)
            offset = batch.next_offset
            for event in batch.events:
                self._note(event, steps, on_progress)
                if isinstance(event, MemoryEvent) and steps and steps[-1].data.step >= _STEPS:
                    return self._result(event, steps, device)
            if self._stopped.is_set():
                raise CancelledRequestError
            if ended:
                raise WorkerError(
                    "The process for the measurement ended without a result, perhaps for want of memory.",
                    "Lower what the run needs, or close other programs.",
                )
            time.sleep(_LOOK_SECONDS)

    def _note(self, event: Event, steps: list[StepEvent], on_progress: OnMeasurementProgress) -> None:
        if isinstance(event, FailedEvent):
            kind = DeviceError if event.data.cause == "out_of_memory" else RunError
            raise kind(event.data.what, event.data.fix)
        if isinstance(event, StepEvent):
            steps.append(event)
            message = f"Step {event.data.step} of {_STEPS} is done."
            on_progress(MeasurementProgress(message=message, fraction=event.data.step / (_STEPS + 1)))
        elif isinstance(event, StatusEvent) and event.data.message:
            on_progress(MeasurementProgress(message=event.data.message))

    def _result(self, event: MemoryEvent, steps: list[StepEvent], device: Device) -> MeasuredStep:
        data, estimate, training = event.data, self._estimate, self._config.training
        reserved = data.peak_reserved_bytes if device.kind != "cpu" else None
        # The driver's figure for one process is not known to PyTorch: on a GPU the allocator's is compared.
        outside = estimate.expected_bytes - estimate.reserved_bytes if reserved is not None else 0
        seconds = steps[-1].time - steps[-2].time if len(steps) > 1 else 0.0
        return MeasuredStep(
            device_name=device.name,
            measured_bytes=reserved if reserved is not None else data.peak_process_bytes,
            predicted_bytes=estimate.reserved_bytes if reserved is not None else estimate.expected_bytes,
            bound_bytes=estimate.needed_bytes - outside,
            measures_process=reserved is None,
            allocated_bytes=data.peak_allocated_bytes,
            step_seconds=seconds * training.gradient_accumulation_steps / _passes(self._config),
            rows=training.per_device_train_batch_size,
            tokens=training.max_length,
        )


def worst_case(config: RunConfig, rows: Path) -> RunConfig:
    """The same training on rows that are all as long as they may be, for two optimizer steps and no measuring between."""
    training = config.training.model_copy(
        update={
            "max_steps": _STEPS,
            "logging_steps": 1,
            "gradient_accumulation_steps": _passes(config),
            "early_stopping_patience": None,
            "load_best_model_at_end": False,
        }
    )
    dataset = config.dataset.model_validate(
        {"source": str(rows), "format": "text", "train_on": "all", "eval_fraction": 0.0}
    )
    adapter = config.adapter.model_copy(update={"warm_start": None})
    return config.model_copy(update={"training": training, "dataset": dataset, "adapter": adapter})


def _passes(config: RunConfig) -> int:
    """Passes before a step: beyond two, more of them take time and no memory."""
    return min(config.training.gradient_accumulation_steps, 2)


def _write_rows(path: Path, config: RunConfig) -> None:
    training = config.training
    count = training.per_device_train_batch_size * _passes(config) * _STEPS
    line = " ".join(_WORDS[number % len(_WORDS)] for number in range(training.max_length + 8))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"text": f"{number} {line}"}) + "\n")


def _end(process: Popen[bytes]) -> None:
    """Its results are nobody's, so that it is not asked to save them."""
    if process.poll() is None:
        process.kill()
    process.wait()

"""Measure the memory of a worst-case step: the longest rows and the full batch, run by the real worker."""

import contextlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.objectives import RowKind, objective_of
from loratory.engine.config.run import DataFormatName, DatasetConfig, RunConfig
from loratory.engine.errors import ConfigError, DeviceError, RunError, WorkerError, explain_os_errors
from loratory.engine.files import write_atomically
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import note_model
from loratory.engine.hardware.devices import choose_devices
from loratory.engine.hardware.lease import (
    UNTIL_A_CHAT_LEAVES_SECONDS,
    LeaseBook,
    LeaseHolder,
    Wait,
    hold_devices,
    lease_name,
)
from loratory.engine.lab.rules import lab_problems
from loratory.engine.memory.estimate import Estimator, MemoryEstimate
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import ProcessIdentity, end_group
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.runs.history.events import Event, FailedData, MemoryData, StatusData, StepData
from loratory.engine.runs.history.log import read_events
from loratory.engine.runs.job import JobSpec, WorkerCommand, start_worker, worker_command
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.run import RUN_VARIABLE, Run, RunFolder, RunState

_STEPS = 2  # the second one has the optimizer's state
_LOOK_SECONDS = 0.25
_LARGEST_BATCH, _SHORTEST = 4096, 8  # the bounds of TrainingConfig
_FORMATS: Mapping[RowKind, DataFormatName] = {
    "answers": "text",
    "pairs": "preference",
    "ratings": "kto",
    "prompts": "prompt",
}
# Each of these words has at least one token in any tokenizer.
_WORDS = "memory tensor adapter gradient layer token batch length weight rank ".split()


class MeasuredStep(BaseModel, frozen=True):
    """The measured memory of two optimizer steps, and the prediction. On a CPU it is that of the whole process."""

    device_name: str
    measured_bytes: int  # to be compared with `predicted_bytes`
    predicted_bytes: int
    bound_bytes: int  # nine runs in ten were predicted to stay below
    measures_process: bool  # otherwise the memory that PyTorch's allocator has reserved
    allocated_bytes: int | None  # tensors alone, where the device reports it
    step_seconds: float
    rows: int  # of one pass
    tokens: int  # of each row

    @property
    def error(self) -> float:
        """Relative, positive where the prediction was too high."""
        return self.predicted_bytes / self.measured_bytes - 1


class MeasurementProgress(NamedTuple):
    """The progress of a measurement."""

    message: str
    fraction: float | None = None


OnMeasurementProgress = Callable[[MeasurementProgress], None]


class MeasurementJob:
    """Runs the worst steps of a configuration in a separate process; nothing of them is saved."""

    def __init__(
        self,
        home: LoratoryHome,
        config: RunConfig,
        estimate: MemoryEstimate,
        command: WorkerCommand = worker_command,
    ) -> None:
        self._home = home
        self._config = config
        self._estimate = estimate
        self._command = command
        self._stop_requested = threading.Event()

    def run(self, on_progress: OnMeasurementProgress = lambda _: None) -> MeasuredStep:
        """Measure.

        Raises:
            DeviceError: If the device is in use, or its memory was not enough.
            RunError: If the worker failed for another reason, which is named.
            WorkerError: If the process ended without a message.
            CancelledRequestError: If it was stopped.
            ConfigError: If the person of a lab may not use one of the settings.
            StorageError: If the home cannot be written.
        """
        problems = lab_problems(self._config, self._home)
        if problems := [problem for problem in problems if not problem.field.startswith("dataset.")]:  # not read here
            raise ConfigError(problems)
        devices = choose_devices(self._config.run)
        sweep_measurements(self._home)
        with measuring_run(self._home) as run:
            rows = run.folder.path / "rows.jsonl"
            write_rows(rows, self._config)
            worst = worst_case(self._config, rows)
            write_atomically(run.folder.config, config_to_yaml(worst))
            return self._measure(JobSpec(run, worst, devices, 1), on_progress)

    def _measure(self, spec: JobSpec, on_progress: OnMeasurementProgress) -> MeasuredStep:
        run, names, ours = spec.run, [lease_name(device) for device in spec.devices], ProcessIdentity.current()
        book = LeaseBook(self._home)
        holder = LeaseHolder(
            purpose="measurement", title="one step", process=ours, run_id=run.id, owner=self._home.owner
        )
        process: Popen[bytes] | None = None
        try:
            wait = Wait(
                UNTIL_A_CHAT_LEAVES_SECONDS,
                lambda obstacle: on_progress(MeasurementProgress(obstacle.why_wait)),
                self._stop_requested,
            )
            hold_devices(book, names, holder, wait)  # before there is a worker, so it never shares them
            on_progress(MeasurementProgress("Starting a process for the measurement."))
            run.folder.write_state(RunState(state="starting", attempt=1))  # it has no supervisor
            process = start_worker(spec, self._command)
            worker = ProcessIdentity.from_pid(process.pid)
            if worker is not None:  # the lease ends with the worker, also where we end first
                book.hand_over(names, ours, holder.model_copy(update={"process": worker}))
                note_model(self._home, self._config.model.id, "measurement", worker)
            return self._follow(process, run, spec.devices[0], on_progress)
        finally:
            if process is not None:
                process.kill()
                process.wait()
                end_group(process.pid, (RUN_VARIABLE, run.id))
            book.release_run(run.id)

    def stop(self) -> None:
        """Stop soon; nothing is saved."""
        self._stop_requested.set()

    def _follow(
        self, process: Popen[bytes], run: Run, device: Device, on_progress: OnMeasurementProgress
    ) -> MeasuredStep:
        offset, steps = 0, list[Event]()
        while True:
            has_ended = process.poll() is not None  # asked first, so what is read afterwards is all there is
            batch = read_events(run.folder.events, offset)
            offset = batch.next_offset
            for event in batch.events:
                match event.data:
                    case FailedData() as failed:
                        kind = DeviceError if failed.cause == "out_of_memory" else RunError
                        raise kind(failed.what, failed.fix)
                    case StepData(step=step):
                        steps.append(event)
                        on_progress(MeasurementProgress(f"Step {step} of {_STEPS} is done.", step / (_STEPS + 1)))
                    case StatusData(message=message) if message:
                        on_progress(MeasurementProgress(message))
                    case MemoryData() as memory if len(steps) >= _STEPS:
                        return self._result(memory, steps, device)
            if self._stop_requested.is_set():
                raise CancelledRequestError
            if has_ended:
                raise WorkerError(
                    "The process for the measurement ended without a result, perhaps because memory ran out.",
                    "Lower what the run needs, or close other programs.",
                )
            time.sleep(_LOOK_SECONDS)

    def _result(self, data: MemoryData, steps: list[Event], device: Device) -> MeasuredStep:
        estimate, training = self._estimate, self._config.training
        reserved = data.peak_reserved_bytes if device.kind != "cpu" else None
        # The driver's figure for one process is not known to PyTorch: on a GPU the allocator's is compared.
        outside = estimate.expected_bytes - estimate.reserved_bytes if reserved is not None else 0
        seconds = steps[-1].time - steps[-2].time
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


def config_of_rows(estimator: Estimator, config: RunConfig) -> RunConfig:
    """Return a configuration whose longest rows are as large as the largest pass of the estimator's rows.

    A measurement of it takes a step of these rows; without known rows it is `config`.

    Raises:
        EngineError: As the estimate does; RunError if the model takes images, which measured rows do not have.
    """
    if estimator.shape.takes_images:
        what = "A step with images is not measured: measured rows have text alone."
        raise RunError(what, "Start the run; it reports its peak.")
    if estimator.rows is None:
        return config
    workload = estimator.workload(config)
    sequences = objective_of(config).sequences_per_example
    tokens = sum(workload.joined_lengths) or workload.batch_size * (workload.length - workload.virtual_inputs)
    # The pairs that are measured share what their template begins with; no pair of the rows shares less.
    tokens += len(workload.joined_lengths) * min(estimator.rows.shared, default=0)
    changes = {
        "per_device_train_batch_size": min(_LARGEST_BATCH, max(1, workload.batch_size // sequences)),
        "max_length": max(_SHORTEST, -(-tokens // workload.batch_size)),
    }
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def worst_case(config: RunConfig, rows: Path) -> RunConfig:
    """Return the same training with rows of the maximum length, for two optimizer steps without evaluation."""
    training = config.training.model_copy(
        update={
            "max_steps": _STEPS,
            "logging_steps": 1,
            "gradient_accumulation_steps": _passes(config),
            "early_stopping_patience": None,
            "load_best_model_at_end": False,
            "precompute_ref_log_probs": False,
        }
    )
    format_ = _FORMATS[objective_of(config).rows[0]]
    dataset = DatasetConfig(source=str(rows), format=format_, train_on="all", eval_fraction=0.0)
    adapter = config.adapter.model_copy(update={"warm_start": None})
    return config.model_copy(update={"training": training, "dataset": dataset, "adapter": adapter})


def _passes(config: RunConfig) -> int:
    """Return the passes before a step: beyond two, more of them take time and no memory."""
    return min(config.training.gradient_accumulation_steps, 2)


def write_rows(path: Path, config: RunConfig) -> None:
    """Write rows for the run's objective, each longer than `max_length`."""
    training = config.training
    count = training.per_device_train_batch_size * _passes(config) * _STEPS
    row = [_WORDS[number % len(_WORDS)] for number in range(training.max_length + 8)]
    line, other = " ".join(row), " ".join(reversed(row))
    rows: Mapping[RowKind, Callable[[int], dict[str, object]]] = {
        "answers": lambda number: {"text": f"{number} {line}"},
        "pairs": lambda number: {"prompt": str(number), "chosen": line, "rejected": other},
        "ratings": lambda number: {"prompt": str(number), "completion": line, "label": number % 2 == 0},
        "prompts": lambda number: {"prompt": " ".join([str(number), *row[: len(row) // 2]])},
    }
    make_row = rows[objective_of(config).rows[0]]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(make_row(number)) + "\n" for number in range(count))


_OWNER = "measurements"
_PREFIX = "measurement-"
_SWEPT_SECONDS = 24 * 3600.0  # a measurement takes minutes


@contextlib.contextmanager
def measuring_run(home: LoratoryHome) -> Iterator[Run]:
    """Make the run folder of a measurement: as deep below the home as those of runs, and not among them.

    In a lab it belongs to the person, whose models it may need. It is removed in the end, or by a sweep a day later.

    Raises:
        StorageError: If the home cannot be written.
    """
    run_id = f"{_PREFIX}{secrets.token_hex(6)}"
    folder = RunFolder(_parent(home) / run_id)
    fix = "Free some space, or check LORATORY_HOME."
    try:
        with explain_os_errors("The files of the measurement cannot be written", fix):
            _parent(home).mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.path.mkdir(mode=0o700)
            folder.control.mkdir(mode=0o700)
            if home.owner and not home.is_guest:
                write_atomically(folder.provenance, Provenance(person=home.owner).model_dump_json())
            yield Run(id=run_id, owner=_OWNER, folder=folder)
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def sweep_measurements(home: LoratoryHome) -> None:
    """Remove what processes left of their measurements that died a day ago; a worker ends after its steps."""
    parents = [_parent(home)] if home.owner else [_parent(home), *(home.root / "page-cache").glob("*")]
    for path in (path for parent in parents for path in parent.glob(f"{_PREFIX}*")):
        with contextlib.suppress(FileNotFoundError):  # its own process was quicker
            if time.time() - path.stat().st_mtime > _SWEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _parent(home: LoratoryHome) -> Path:
    return home.cache if home.owner else home.cache / _OWNER

"""The worker's events, also while the disk is full, with the memory that a run takes on its devices."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from loratory.engine.errors import StorageError
from loratory.engine.hardware.cuda import GpuMeter, gpu_process_bytes
from loratory.engine.processes.limits import peak_process_bytes
from loratory.engine.runs.checkpoints import Checkpoint
from loratory.engine.runs.history.events import (
    CheckpointData,
    EvalData,
    EventData,
    MemoryData,
    Phase,
    StatusData,
    StepData,
    StoppedBy,
    WarningData,
)
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.run import EVENTS_FILE
from loratory.engine.training import faults
from loratory.engine.training.failure import StopRequests, is_disk_full
from loratory.engine.training.placement import Placement
from loratory.engine.training.trackers import Trackers

RESERVE_FILE = ".reserve"
_LOOP_METRICS = ("loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second")  # of every objective, for trackers

_RESERVE_BYTES = 256 * 1024  # freed when the disk is full, so the log can report it
_RETRY_SECONDS = 5.0
_REPORT_AGAIN_SECONDS = 120.0
_REQUEST_POLL_SECONDS = 0.2


@dataclass
class DeviceMemory:
    """Reads the counters of one kind of device; where layers are spread over several, those of the fullest."""

    kind: str = "cpu"  # as torch calls it
    indexes: tuple[int, ...] = ()  # CUDA devices by torch's number
    backend: Any = None  # has the counters: `torch.cuda` or `torch.mps`
    driver_indexes: tuple[int, ...] = ()  # the same devices by the driver's number, in the same order
    process_bytes: Callable[[int], int | None] = gpu_process_bytes  # what this process takes of a device
    meter: GpuMeter = field(default_factory=GpuMeter)
    _highest_driver_bytes: int = 0  # on Apple's GPU, which keeps no peak
    # By what it is and the device, before the counters were last set back.
    _highest: Counter[tuple[str, int]] = field(default_factory=Counter)

    @classmethod
    def from_placement(cls, placement: Placement) -> "DeviceMemory":
        """Return the counters of the devices that a run trains on."""
        kind = placement.torch_device.type
        backend = {"cuda": torch.cuda, "mps": torch.mps}.get(kind)
        driver_indexes = tuple(device.index for device in placement.devices)
        meter = GpuMeter(driver_indexes if kind == "cuda" else ())
        return cls(kind, placement.torch_indexes, backend, driver_indexes, meter=meter)

    def step_bytes(self) -> int:
        """Return the peak allocated since the last call on CUDA; elsewhere, where there is no peak, what is in use now."""
        if self.kind == "cuda":
            highest = max(int(self.backend.max_memory_allocated(index)) for index in self.indexes)
            for index in self.indexes:
                for what in ("allocated", "reserved"):
                    self._highest[what, index] = self._peak(what, index)
                self.backend.reset_peak_memory_stats(index)
            return highest
        if self.kind == "mps":
            self._read_driver_bytes()
            return int(self.backend.current_allocated_memory())
        return int(psutil.Process().memory_info().rss)

    def peak_allocated_bytes(self) -> int | None:
        """Return the peak memory of tensors; None where it is not counted."""
        return max(self._peak("allocated", index) for index in self.indexes) if self.kind == "cuda" else None

    def peak_reserved_bytes(self) -> int | None:
        """Return the peak memory that PyTorch reserved on the device; None on a processor.

        Apple's driver reports what is held now and no peak. PyTorch returns nothing by itself, so the highest
        of all readings, one a logged step, is the peak or close to it.

        Source: torch.mps.driver_allocated_memory.
        """
        if self.kind == "cuda":
            return max(self._peak("reserved", index) for index in self.indexes)
        return self._read_driver_bytes() if self.kind == "mps" else None

    def peak_process_bytes(self) -> int | None:
        """Return the peak memory of this process on a GPU as its driver counts it; None where no driver reports it.

        The driver keeps no peak. What is outside PyTorch's allocator, the context and its kernels, stays until the
        process ends, so it is added to the peak of the allocator.
        """
        if self.kind != "cuda":
            return None
        peaks = []
        for index, driver_index in zip(self.indexes, self.driver_indexes, strict=False):
            now = self.process_bytes(driver_index)
            if now is not None:
                outside = now - int(self.backend.memory_reserved(index))
                peaks.append(max(now, outside + self._peak("reserved", index)))
        return max(peaks, default=None)

    def _peak(self, what: str, index: int) -> int:
        return max(int(getattr(self.backend, f"max_memory_{what}")(index)), self._highest[what, index])

    def _read_driver_bytes(self) -> int:
        self._highest_driver_bytes = max(self._highest_driver_bytes, int(self.backend.driver_allocated_memory()))
        return self._highest_driver_bytes


class RunEvents:
    """Writes the events of one attempt at the run in a folder; without a writer, none: another process is the first.

    While the disk is full, the run pauses until there is room or it is ended. `stop_timeout_seconds` is how long a run
    that must save and end waits for room to save: less than systems leave between SIGTERM and SIGKILL.
    """

    def __init__(
        self, writer: EventWriter | None, folder: Path, requests: StopRequests, stop_timeout_seconds: float = 20.0
    ) -> None:
        self._writer = writer
        self._log = folder / EVENTS_FILE
        self._reserve = folder / RESERVE_FILE
        self._requests = requests
        self._stop_timeout_seconds = stop_timeout_seconds
        self.last_seq = 0
        self.predicted_bytes: int | None = None
        self.device_memory = DeviceMemory()
        self.trackers = Trackers({}, self.warn)
        self._fill_reserve()

    def emit(self, data: EventData) -> None:
        """Write one event; while the disk is full, wait."""
        self.when_there_is_room(lambda: self._append(data))

    def status(self, phase: Phase, message: str, total_steps: int | None = None) -> None:
        """Report that the worker entered a phase."""
        self.emit(StatusData(phase=phase, message=message, total_steps=total_steps))

    def stopped(self, message: str, stopped_by: StoppedBy, total_steps: int | None = None) -> None:
        """Report that the worker ends before the last step."""
        self.emit(StatusData(phase="stopped", message=message, total_steps=total_steps, stopped_by=stopped_by))

    def warn(self, message: str, code: str = "") -> None:
        """Report something that works, but probably not as wanted."""
        self.emit(WarningData(message=message, code=code))

    def step(self, step: StepData) -> None:
        """Report a logged optimizer step; its memory and the readings of its GPUs are added here."""
        devices = {"memory_bytes": self.device_memory.step_bytes(), "gpu": self.device_memory.meter.read()}
        self.emit(step.model_copy(update=devices))
        values = {name: getattr(step, name) for name in _LOOP_METRICS} | step.metrics
        self.trackers.log(step.step, {f"train/{name}": value for name, value in values.items()})

    def held_out(self, measured: EvalData) -> None:
        """Report a measurement of the held-out loss."""
        self.emit(measured)
        values = {"loss": measured.eval_loss} | measured.metrics
        self.trackers.log(measured.step, {f"eval/{name}": value for name, value in values.items()})

    def checkpoint(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Report that a checkpoint is complete."""
        name, size, best = checkpoint.folder.name, checkpoint.size_bytes, checkpoint.manifest.best
        self.emit(CheckpointData(step=checkpoint.step, name=name, size_bytes=size, best=best, seconds=seconds))

    def memory(self) -> None:
        """Report the memory peaks so far."""
        self.emit(self._peaks())

    def last_memory(self) -> None:
        """Report the memory peaks of an attempt that fails; a further error is ignored."""
        with contextlib.suppress(Exception):
            self._append(self._peaks())

    def _peaks(self) -> MemoryData:
        return MemoryData(
            peak_allocated_bytes=self.device_memory.peak_allocated_bytes(),
            peak_reserved_bytes=self.device_memory.peak_reserved_bytes(),
            peak_process_bytes=peak_process_bytes(),
            peak_device_process_bytes=self.device_memory.peak_process_bytes(),
            predicted_bytes=self.predicted_bytes,
        )

    def when_there_is_room(self, write: Callable[[], None]) -> None:
        """Write, and while the disk is full, wait and try again.

        Raises:
            CancelledError: If the run is ended meanwhile.
            Exception: Whatever `write` raises for other reasons; its error about the full disk where the run must stop
                and there is still no room after the timeout.
        """
        reported_at = 0.0
        give_up_at: float | None = None
        while True:
            try:
                write()
                break
            except Exception as error:
                if not is_disk_full(error) or (give_up_at is not None and time.monotonic() >= give_up_at):
                    raise
            now = time.monotonic()
            if not reported_at or now - reported_at > _REPORT_AGAIN_SECONDS:
                reported_at = now
                self._empty_reserve()
                self._try_to_warn(
                    "The disk is full. The run waits and continues by itself once there is room.", "disk_full"
                )
            if self._wait_for_room(stops=give_up_at is not None) and give_up_at is None:
                give_up_at = time.monotonic() + self._stop_timeout_seconds
        if reported_at:
            self._fill_reserve()
            self._try_to_warn("There is room on the disk again; the run continues.", "disk_has_room")

    def _wait_for_room(self, *, stops: bool) -> bool:
        """Wait before the next try, shorter where the run must stop; returns whether it must."""
        with contextlib.suppress(OSError):  # shows that the worker is alive; the reserve may be used up too
            os.utime(self._log)
        end = time.monotonic() + (0.1 if faults.is_armed("disk_full:hurry") else _RETRY_SECONDS)
        while True:
            self._requests.check_cancel()
            if not stops and self._requests.stop_wanted():
                return True
            rest = end - time.monotonic()
            if rest <= 0:
                return stops
            time.sleep(min(rest, _REQUEST_POLL_SECONDS))

    def _try_to_warn(self, message: str, code: str) -> None:
        with contextlib.suppress(StorageError, OSError):  # full again: the next write waits for it
            self._append(WarningData(message=message, code=code))

    def _fill_reserve(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._reserve.write_bytes(b"\0" * _RESERVE_BYTES)

    def _empty_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.unlink()

    def _append(self, data: EventData) -> None:
        if self._writer is not None:
            faults.reached("events:append")
            self.last_seq = self._writer.append(data).seq

    def close(self) -> None:
        """Let trackers finish, and delete the reserve."""
        self.trackers.finish()
        if self._writer is not None:
            self._empty_reserve()
            self._writer.close()

"""Peaks of a run's memory: what was predicted and what was measured, figure by figure.

Tensors are compared with tensors, the allocator's hold with the allocator's hold, and the process with what the system or
the driver counts for it.
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.memory.device_need import DeviceNeed
from engine.runs.history.events import MemoryData

PeakKind = Literal["allocated", "reserved", "process"]


class MemoryFigures(BaseModel):
    """Bytes at the peak; None where the device has no such figure, or it is unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    allocated_bytes: int | None = None  # tensors alone
    reserved_bytes: int | None = None  # what PyTorch's allocator holds for them
    process_bytes: int | None = None  # all that the process takes: of the GPU on CUDA, of RAM on a processor

    def of(self, kind: PeakKind) -> int | None:
        """One of them; None where it is unknown or nothing was there to be counted."""
        figures = {"allocated": self.allocated_bytes, "reserved": self.reserved_bytes, "process": self.process_bytes}
        return figures[kind] or None


class Peak(NamedTuple):
    """One figure, predicted and measured."""

    kind: PeakKind
    predicted_bytes: int | None
    measured_bytes: int | None

    @property
    def difference(self) -> float | None:
        """Of the measured from the predicted, relative; positive where it took more."""
        if self.predicted_bytes is None or self.measured_bytes is None:
            return None
        return self.measured_bytes / self.predicted_bytes - 1


def predicted_figures(need: DeviceNeed, device_kind: Literal["cuda", "mps", "cpu"]) -> MemoryFigures:
    """Those figures of an estimate that a run on such a device will be measured by."""
    if device_kind == "cpu":
        return MemoryFigures(process_bytes=need.expected_bytes)
    if device_kind == "mps":  # its driver tells what PyTorch holds, and no peak of tensors
        return MemoryFigures(reserved_bytes=need.reserved_bytes)
    return MemoryFigures(
        allocated_bytes=need.allocated_bytes, reserved_bytes=need.reserved_bytes, process_bytes=need.expected_bytes
    )


def measured_figures(memory: MemoryData) -> MemoryFigures:
    """What a worker measured, by the figures that it could tell."""
    if memory.peak_reserved_bytes is None:
        return MemoryFigures(process_bytes=memory.peak_process_bytes)
    return MemoryFigures(
        allocated_bytes=memory.peak_allocated_bytes,
        reserved_bytes=memory.peak_reserved_bytes,
        process_bytes=memory.peak_device_process_bytes,
    )


def compare_peaks(
    predicted: MemoryFigures | None, memory: MemoryData | None, predicted_process_bytes: int | None
) -> tuple[Peak, ...]:
    """Every figure of which something is known, predicted and measured.

    Args:
        predicted: None for runs of versions that kept the process's figure alone.
        memory: The highest that the run measured; None before it measured anything.
        predicted_process_bytes: That one figure.
    """
    foretold = predicted or MemoryFigures(process_bytes=predicted_process_bytes)
    measured = measured_figures(memory) if memory is not None else MemoryFigures()
    kinds: tuple[PeakKind, ...] = ("allocated", "reserved", "process")
    peaks = (Peak(kind, foretold.of(kind), measured.of(kind)) for kind in kinds)
    return tuple(peak for peak in peaks if peak.predicted_bytes is not None or peak.measured_bytes is not None)


def chief_prediction(
    predicted: MemoryFigures | None, memory: MemoryData | None, predicted_process_bytes: int | None
) -> int | None:
    """The counterpart of a run's one figure in lists: of the allocator's hold on a GPU, of the process on a processor."""
    if predicted is not None:
        return predicted.of("reserved") or predicted.of("process")
    is_like = memory is None or memory.peak_reserved_bytes is None
    return predicted_process_bytes if is_like else None


def step_prediction(
    predicted: MemoryFigures | None, memory: MemoryData | None, predicted_process_bytes: int | None
) -> int | None:
    """The counterpart of the memory that each step reports: of tensors on a GPU, of the process on a processor."""
    tensors = predicted.of("allocated") if predicted is not None else None
    return tensors or chief_prediction(predicted, memory, predicted_process_bytes)

"""Memory that a run takes on its devices: now, and at most so far."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from engine.hardware.cuda import gpu_process_bytes
from engine.training.placement import Placement


@dataclass
class DeviceMemory:
    """Reads the counters of one kind of device; where layers are spread over several, those of the fullest."""

    kind: str = "cpu"  # as torch calls it
    indexes: tuple[int, ...] = ()  # CUDA devices by torch's number
    backend: Any = None  # has the counters: `torch.cuda` or `torch.mps`
    driver_indexes: tuple[int, ...] = ()  # the same devices by the driver's number, in the same order
    ask_driver: Callable[[int], int | None] = gpu_process_bytes  # what this process takes of a device
    _highest_seen: int = 0  # on Apple's GPU, which keeps no peak
    # By what it is and the device, before the counters were last set back.
    _highest: Counter[tuple[str, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, placement: Placement) -> "DeviceMemory":
        """The counters of where a run trains."""
        kind = placement.torch_device.type
        backend = {"cuda": torch.cuda, "mps": torch.mps}.get(kind)
        driver_indexes = tuple(device.index for device in placement.spread or (placement.device,))
        return cls(kind, placement.torch_indexes, backend, driver_indexes)

    def step_bytes(self) -> int:
        """What the steps since the last call took: allocated at most on CUDA; in use now elsewhere, where no peak is kept."""
        if self.kind == "cuda":
            highest = max(int(self.backend.max_memory_allocated(index)) for index in self.indexes)
            for index in self.indexes:
                for what in ("allocated", "reserved"):
                    self._highest[what, index] = self._peak(what, index)
                self.backend.reset_peak_memory_stats(index)
            return highest
        if self.kind == "mps":
            self._look()
            return int(self.backend.current_allocated_memory())
        return int(psutil.Process().memory_info().rss)

    def peak_allocated_bytes(self) -> int | None:
        """The most that tensors took; None where it is not counted."""
        return max(self._peak("allocated", index) for index in self.indexes) if self.kind == "cuda" else None

    def peak_reserved_bytes(self) -> int | None:
        """The most that PyTorch held of the device; None on a processor.

        Apple's driver reports what is held now and no peak. PyTorch returns nothing by itself, so the highest
        of all looks, one a logged step, is the peak or close to it.

        Source: torch.mps.driver_allocated_memory.
        """
        if self.kind == "cuda":
            return max(self._peak("reserved", index) for index in self.indexes)
        return self._look() if self.kind == "mps" else None

    def peak_process_bytes(self) -> int | None:
        """The most that this process took of a GPU as its driver counts it; None where no driver reports it.

        The driver keeps no peak. What is outside PyTorch's allocator, the context and its kernels, stays until the
        process ends, so it is added to the most that the allocator held.
        """
        if self.kind != "cuda":
            return None
        peaks = []
        for index, driver_index in zip(self.indexes, self.driver_indexes, strict=False):
            now = self.ask_driver(driver_index)
            if now is not None:
                outside = now - int(self.backend.memory_reserved(index))
                peaks.append(max(now, outside + self._peak("reserved", index)))
        return max(peaks, default=None)

    def _peak(self, what: str, index: int) -> int:
        return max(int(getattr(self.backend, f"max_memory_{what}")(index)), self._highest[what, index])

    def _look(self) -> int:
        self._highest_seen = max(self._highest_seen, int(self.backend.driver_allocated_memory()))
        return self._highest_seen

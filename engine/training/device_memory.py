"""Memory that a run takes on its devices: now, and at most so far."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from engine.training.placement import Placement


@dataclass
class DeviceMemory:
    """Reads the counters of one kind of device; where layers are spread over several, those of the fullest.

    Attributes:
        kind: As torch calls it: cuda, mps, cpu.
        indexes: CUDA devices by torch's number.
        backend: Has the counters: `torch.cuda` or `torch.mps`; None on a processor, whose memory is the process's.
    """

    kind: str = "cpu"
    indexes: tuple[int, ...] = ()
    backend: Any = None
    _highest_seen: int = 0  # on Apple's GPU, which keeps no peak

    @classmethod
    def of(cls, placement: Placement) -> "DeviceMemory":
        """The counters of where a run trains."""
        kind = placement.torch_device.type
        backend = {"cuda": torch.cuda, "mps": torch.mps}.get(kind)
        return cls(kind, placement.torch_indexes, backend)

    def now_bytes(self) -> int:
        """In use: allocated on a GPU, resident on a processor."""
        if self.kind == "cuda":
            return max(int(self.backend.memory_allocated(index)) for index in self.indexes)
        if self.kind == "mps":
            self._look()
            return int(self.backend.current_allocated_memory())
        return int(psutil.Process().memory_info().rss)

    def peak_allocated_bytes(self) -> int | None:
        """The most that tensors took; None where nobody counts it."""
        if self.kind == "cuda":
            return max(int(self.backend.max_memory_allocated(index)) for index in self.indexes)
        return None

    def peak_reserved_bytes(self) -> int | None:
        """The most that PyTorch held of the device; None on a processor.

        Apple's driver tells what is held at present and no peak. PyTorch gives nothing back by itself, so that the highest
        of all looks, one a logged step, is the peak or close to it.

        Source: torch.mps.driver_allocated_memory.
        """
        if self.kind == "cuda":
            return max(int(self.backend.max_memory_reserved(index)) for index in self.indexes)
        return self._look() if self.kind == "mps" else None

    def _look(self) -> int:
        self._highest_seen = max(self._highest_seen, int(self.backend.driver_allocated_memory()))
        return self._highest_seen

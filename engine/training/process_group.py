"""The processes that share a run, one for each device, as seen from one of them."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as distributed
from torch.nn import functional

_Result = TypeVar("_Result")

_DECIDED, _FAILED = b"+", b"-"


class MainProcessFailedError(Exception):
    """The first process failed where this one waited for it, and reports the cause for the whole run."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among those that a launcher (Accelerate, torchrun, Slurm) started.

    Only the first reads requests and writes files and events; all take the same decisions.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "ProcessGroup":
        """Read what launchers set."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come this far."""
        if self.world_size > 1:
            distributed.barrier()

    def broadcast_from_main(self, decide: Callable[[], str]) -> str:
        """Return in every process what `decide` returns in the first, which alone calls it.

        Raises:
            MainProcessFailedError: In other processes, if `decide` failed in the first, where its own error continues.
        """
        if self.world_size == 1:
            return decide()
        if not self.is_main:
            outcome = self.gather(_FAILED)[0]  # what other processes give is not read
            if not outcome.startswith(_DECIDED):
                raise MainProcessFailedError
            return outcome.removeprefix(_DECIDED).decode()
        try:
            value = decide()
        except BaseException:
            with contextlib.suppress(Exception):  # the cause is what counts; a process that left needs no word
                self.gather(_FAILED)
            raise
        self.gather(_DECIDED + value.encode())
        return value

    def main_process_first(self, act: Callable[[], _Result]) -> _Result:
        """Call a function that makes files in the first process, then in the other ones, which find the files.

        Raises:
            MainProcessFailedError: In the other ones, if it failed in the first.
        """
        results: list[_Result] = []

        def decide() -> str:
            results.append(act())
            return ""

        self.broadcast_from_main(decide)
        return results[0] if results else act()

    def any(self, flag: bool) -> bool:
        """Whether it is so for any of them; asked by all at the same point."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor(int(flag), device=self._device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
        return bool(votes)

    def gather(self, value: bytes) -> list[bytes]:
        """Everybody's value by rank. As bytes: torch's way to gather objects would unpickle them."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(value), dtype=torch.uint8).to(self._device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.world_size)]
        distributed.all_gather(sizes, torch.tensor([own.numel()], device=self._device))
        lengths = [int(size) for size in sizes]
        padded = functional.pad(own, (0, max(lengths) - own.numel()))
        gathered = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(gathered, padded)
        return [entry[:length].cpu().numpy().tobytes() for entry, length in zip(gathered, lengths, strict=True)]

    @property
    def _device(self) -> str:
        return "cuda" if distributed.get_backend() == "nccl" else "cpu"


SINGLE_PROCESS = ProcessGroup()

"""Sums of each step over all processes; they stay on the device until a step is logged, so no step waits for them."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Votes(NamedTuple):
    """Requests of the processes, summed over them."""

    stops: int  # how many want the run to stop
    logs: int  # the first process's vote on logging; `RunCallback.log_vote`


class _PendingVotes(NamedTuple):
    """Votes that are being copied to the CPU."""

    votes: torch.Tensor  # (2,), in CPU memory
    copied_event: Any  # an event of CUDA; None on other devices


class StepCounts:
    """Terms, tokens and requests to stop of each step, over all processes.

    Args:
        accelerator: The trainer's, which sums over all processes.
        device: The device of losses.
    """

    def __init__(self, accelerator: Any, device: torch.device) -> None:
        self._accelerator = accelerator
        self._device = device
        self._step: Sequence[int] | torch.Tensor = (0, 0)  # trained and all tokens of the step under way
        self._totals = [0, 0]
        self._unread: torch.Tensor | None = None
        self._pending: deque[_PendingVotes] = deque(maxlen=2)

    @property
    def has_begun(self) -> bool:
        """Whether a step of several processes was counted."""
        return bool(self._pending)

    def begin(
        self, terms: Sequence[int], trained_tokens: int, tokens: int, votes: Votes
    ) -> Sequence[float | torch.Tensor]:
        """Start a step with the terms, tokens and votes of this process.

        Returns:
            The factor for the summed loss of each part. It gives the mean over the terms of all processes, whose gradients
            are divided by their number once more.
        """
        if self._accelerator.num_processes == 1:
            self._step = (trained_tokens, tokens)
            return [1 / max(1, count) for count in terms]
        own = torch.tensor([*terms, trained_tokens, tokens, *votes])
        if self._device.type == "cuda":
            own = own.pin_memory()
        sums = self._accelerator.reduce(own.to(self._device, non_blocking=True), reduction="sum")
        self._step = sums[-4:-2]
        self._send(sums[-2:])
        return list((self._accelerator.num_processes / sums[:-4].clamp_min(1).double()).float())

    def end(self) -> None:
        """Add the tokens of the last started step, which is complete."""
        if isinstance(self._step, torch.Tensor):
            self._unread = self._step if self._unread is None else self._unread + self._step
        else:
            self._totals = [total + count for total, count in zip(self._totals, self._step, strict=True)]

    def take(self) -> tuple[int, int]:
        """Return trained and all tokens of the steps since the last call; waits for the device."""
        unread = [0, 0] if self._unread is None else self._unread.tolist()
        trained, tokens = (total + count for total, count in zip(self._totals, unread, strict=True))
        self._totals, self._unread = [0, 0], None
        return trained, tokens

    def latest_votes(self) -> Votes | None:
        """Return the votes at the start of the step before the last one; all processes get them after the same step.

        A GPU has summed them by then, while its queue still has most of a step. None before there are any.
        """
        if len(self._pending) < 2:
            return None
        pending = self._pending[0]
        if pending.copied_event is not None:
            pending.copied_event.synchronize()
        return Votes(*(int(count) for count in pending.votes.numpy()))

    def _send(self, votes_on_device: torch.Tensor) -> None:
        on_cuda = self._device.type == "cuda"
        votes = torch.empty(len(votes_on_device), dtype=votes_on_device.dtype, pin_memory=on_cuda)
        votes.copy_(votes_on_device, non_blocking=True)
        copied_event = torch.cuda.Event() if on_cuda else None
        if copied_event is not None:
            copied_event.record()
        self._pending.append(_PendingVotes(votes, copied_event))

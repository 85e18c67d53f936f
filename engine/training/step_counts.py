"""What the processes of a run add up in each step: sums stay on the device, where nobody waits for them, until a step is logged."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Votes(NamedTuple):
    """What processes want, summed over them."""

    stops: int  # how many want the run to stop
    logs: int  # what the first process has said about logging; `RunCallback.log_vote`


class _Sent(NamedTuple):
    """Votes on their way to the processor."""

    votes: torch.Tensor  # (2,), in memory that the processor reads
    arrived: Any  # an event of CUDA; None on other devices


class StepCounts:
    """Terms, tokens and requests to stop of each step, over all processes.

    Args:
        accelerator: Of the trainer, which adds up over processes.
        device: That losses are on.
    """

    def __init__(self, accelerator: Any, device: torch.device) -> None:
        self._accelerator = accelerator
        self._device = device
        self._step: Sequence[int] | torch.Tensor = (0, 0)  # trained and all tokens of the step under way
        self._known = [0, 0]
        self._unread: torch.Tensor | None = None
        self._sent: deque[_Sent] = deque(maxlen=2)

    @property
    def has_begun(self) -> bool:
        """Whether a step of several processes was counted."""
        return bool(self._sent)

    def begin(
        self, terms: Sequence[int], trained_tokens: int, tokens: int, votes: Votes
    ) -> Sequence[float | torch.Tensor]:
        """Count what this process contributes to a step, and what it wants.

        Returns:
            What the summed losses of each part are multiplied by: the mean over the terms of all processes, whose gradients
            are divided by their number once more.
        """
        if self._accelerator.num_processes == 1:
            self._step = (trained_tokens, tokens)
            return [1 / max(1, count) for count in terms]
        own = torch.tensor([*terms, trained_tokens, tokens, *votes])
        if self._device.type == "cuda":
            own = own.pin_memory()
        summed = self._accelerator.reduce(own.to(self._device, non_blocking=True), reduction="sum")
        self._step = summed[-4:-2]
        self._send(summed[-2:])
        return list((self._accelerator.num_processes / summed[:-4].clamp_min(1).double()).float())

    def end(self) -> None:
        """Count the tokens of the step that was begun last, which is complete."""
        if isinstance(self._step, torch.Tensor):
            self._unread = self._step if self._unread is None else self._unread + self._step
        else:
            self._known = [known + count for known, count in zip(self._known, self._step, strict=True)]

    def take(self) -> tuple[int, int]:
        """Return trained and all tokens of the steps since the last call; waits for the device."""
        unread = [0, 0] if self._unread is None else self._unread.tolist()
        trained, tokens = (known + count for known, count in zip(self._known, unread, strict=True))
        self._known, self._unread = [0, 0], None
        return trained, tokens

    def voted(self) -> Votes | None:
        """Return what processes wanted as the step before the last one began, which all know after the same step.

        A GPU has counted these votes by then, while its queue still has most of a step. None before there are any.
        """
        if len(self._sent) < 2:
            return None
        sent = self._sent[0]
        if sent.arrived is not None:
            sent.arrived.synchronize()
        return Votes(*(int(count) for count in sent.votes.numpy()))

    def _send(self, summed: torch.Tensor) -> None:
        on_cuda = self._device.type == "cuda"
        votes = torch.empty(len(summed), dtype=summed.dtype, pin_memory=on_cuda)
        votes.copy_(summed, non_blocking=True)
        arrived = torch.cuda.Event() if on_cuda else None
        if arrived is not None:
            arrived.record()
        self._sent.append(_Sent(votes, arrived))

"""Steps as the training loop takes them: looked up, joined or padded, in the order that was planned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.training.batches import PassTensors, TokenRow, join, pad
from engine.training.plan import EpochPlanner, PlanSettings, Step, join_rows


@dataclass(frozen=True)
class TrainerRows:
    """Rows to learn from and rows to measure on."""

    train: Sequence[TokenRow]
    train_lengths: Sequence[int]
    held_out: Sequence[TokenRow]
    held_out_lengths: Sequence[int]


@dataclass(frozen=True)
class TrainerSetup:
    """How rows go through the model.

    Attributes:
        settings: Division into steps and passes.
        flash: Joined rows are described as flash attention takes them.
        pad_token_id: Fills up padded rows.
        autocast: Dtype that products are cast to; None where every weight is already held in the right one.
        makes_ahead: The next step's batch is made while this one is learned. A processor has no hands free for it.
    """

    settings: PlanSettings
    pad_token_id: int
    flash: bool = False
    autocast: torch.dtype | None = None
    makes_ahead: bool = False


@dataclass(frozen=True)
class StepBatch:
    """What one process contributes to one optimizer step."""

    passes: tuple[PassTensors, ...]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.passes)

    @property
    def trained_tokens(self) -> int:
        return sum(one.trained_tokens for one in self.passes)

    def pinned(self) -> "StepBatch":
        """The same in memory that CUDA copies from without waiting."""
        return StepBatch(tuple(one.pinned() for one in self.passes))

    def __contains__(self, name: str) -> bool:
        """The loop asks whether there are labels to count; this trainer counts for itself."""
        return False


class StepBatches:
    """Looks up the rows of a planned step. A dataset as `DataLoader` takes it."""

    def __init__(self, rows: Sequence[TokenRow], setup: TrainerSetup) -> None:
        self._rows = rows
        self._setup = setup

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, step: Step) -> StepBatch:
        """One batch of the loop."""
        passes = [(self._tensors(one.rows), one.is_learned) for one in step.passes]
        return StepBatch(tuple(tensors if is_learned else tensors.unlearned() for tensors, is_learned in passes))

    def measured(self, rows: list[int], lengths: Sequence[int]) -> Iterator[PassTensors]:
        """Passes over the held-out rows; nothing is kept for a backward pass, but no more is risked either."""
        settings = self._setup.settings
        rows.sort(key=lambda row: -lengths[row])
        if settings.batching == "joined":
            for one in join_rows(rows, lengths, settings.tokens_per_pass):
                yield self._tensors(one.rows)
            return
        size = settings.per_device_train_batch_size
        for start in range(0, len(rows), size):
            yield self._tensors(tuple(rows[start : start + size]))

    def _tensors(self, numbers: Sequence[int]) -> PassTensors:
        rows = [self._rows[number] for number in numbers]
        if self._setup.settings.batching == "joined":
            return join(rows, flash=self._setup.flash)
        return pad(rows, self._setup.pad_token_id)


class StepOrder:
    """The steps of the epoch that training is in; a batch sampler as `DataLoader` takes it."""

    def __init__(self, planner: EpochPlanner, epoch: Callable[[], int]) -> None:
        self._planner = planner
        self._epoch = epoch

    def __len__(self) -> int:
        return self._planner.steps_per_epoch

    def __iter__(self) -> Iterator[Step]:
        return self._planner.steps(self._epoch())


def unchanged(batch: Any) -> Any:
    """What a loader does with a batch that is complete."""
    return batch

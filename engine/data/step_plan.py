"""Plan which rows are trained on in which step, and which of them pass through the model together.

The order is a function of a `RowOrder` and the epoch alone. A checkpoint pins it, so a resumed run finds where it stopped by
counting, on any device. Gradients of a step are summed over all its trained tokens; how its rows are divided into passes
changes the speed and not the result.
"""

import itertools
import math
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from loratory.engine.config.training import TrainingConfig
from loratory.engine.errors import RunError
from loratory.engine.models.batching import Batching

# Rows are sorted by length within blocks of this many steps, of which an epoch has at least so many: the rows of a step
# change from epoch to epoch. Source: `get_length_grouped_indices`, transformers/trainer_pt_utils.py.
_MOST_STEPS_IN_A_BLOCK = 50
_FEWEST_BLOCKS = 4
_MOST_PADDED = 1.2  # times the tokens of two passes that are merged; more costs more than one pass less saves


class RowOrder(BaseModel, frozen=True):
    """Everything that determines the rows of each step of an epoch, on any device."""

    seed: int
    rows_per_step: int  # over all processes; packed sequences where rows are packed
    max_length: int  # tokens of a packed sequence
    packing: bool
    groups_by_length: bool


class RowPlan(BaseModel, frozen=True):
    """The rows of a run, their order, and the batching of the attempt that wrote the checkpoint."""

    order: RowOrder
    rows_sha256: str  # token ids and labels of the training rows
    batching: str
    world_size: int
    merged: int = 1  # passes of a step that went through the model as one, at most


@dataclass(frozen=True)
class PlanSettings:
    """The settings that determine the steps."""

    training: TrainingConfig
    batching: Batching = "padded"
    world_size: int = 1  # processes that share each step
    rank: int = 0
    sequences_per_row: int = 1  # of the objective's examples
    pinned_order: RowOrder | None = None  # of the run's beginning, which may have been on another device
    merged: int = 1  # passes of a step that go through the model as one, at most: where the device has room for them
    shares_prompts: bool = False  # what the sequences of a row begin with goes through the model once
    repeats: int = 1  # optimizer steps on the same rows, one after the other

    def __post_init__(self) -> None:
        if self.training.packing and self.batching != "joined":
            raise ValueError("packed rows must be joined, or they would see each other")

    @property
    def order(self) -> RowOrder:
        """The order of rows: the pinned one, or the one that these settings begin a run with."""
        if self.pinned_order is not None:
            return self.pinned_order
        training = self.training
        passes = training.gradient_accumulation_steps * self.world_size
        return RowOrder(
            seed=training.seed,
            rows_per_step=training.per_device_train_batch_size * passes,
            max_length=training.max_length,
            packing=training.packing,
            # Without padding, rows of like length in a step save nothing.
            groups_by_length=self.batching == "padded" and training.train_sampling_strategy == "group_by_length",
        )

    @property
    def tokens_per_pass(self) -> int:
        """The most tokens of one pass: those of a batch of the longest rows."""
        return self.rows_per_pass * self.sequences_per_row * self.training.max_length

    @property
    def rows_per_pass(self) -> int:
        """The most rows of one padded pass."""
        return self.training.per_device_train_batch_size * self.merged


class Pass(NamedTuple):
    """Numbers of the rows of one forward pass."""

    rows: tuple[int, ...]
    is_trained: bool = True  # otherwise it only runs because other processes wait for this one


class Step(NamedTuple):
    """The rows of one process in one optimizer step."""

    passes: tuple[Pass, ...]
    most_passes: int = 0  # of any of several processes


class EpochPlanner:
    """Divides the rows of each epoch, at least one, into steps; `lengths` are their tokens."""

    def __init__(self, lengths: Sequence[int], settings: PlanSettings) -> None:
        if not lengths:
            raise ValueError("there is no row to plan for")
        self._lengths = lengths
        self._settings = settings
        self._order = settings.order
        units = len(lengths)
        if self._order.packing:
            units = len(pack_rows(range(len(lengths)), lengths, self._order.max_length))
        self.steps_per_epoch = math.ceil(units / self._order.rows_per_step) * settings.repeats

    def steps(self, epoch: int) -> Iterator[Step]:
        """Yield the steps of one epoch, counted from 0, in order; always `steps_per_epoch` of them."""
        for units in self.units(epoch):
            yield from itertools.repeat(self._step(units), self._settings.repeats)

    def units(self, epoch: int) -> list[list[tuple[int, ...]]]:
        """Return the rows of each step, as single rows or as packed sequences."""
        order = list(range(len(self._lengths)))
        self._shuffle(order, epoch)
        units: list[tuple[int, ...]] = [(row,) for row in order]
        if self._order.packing:
            units = pack_rows(order, self._lengths, self._order.max_length)
            # Packing sorts by length; steps should not.
            self._shuffle(units, epoch)
        size = self._order.rows_per_step
        steps = [units[start : start + size] for start in range(0, len(units), size)]
        return self._grouped(units, epoch) if self._order.groups_by_length else steps

    def _grouped(self, units: list[tuple[int, ...]], epoch: int) -> list[list[tuple[int, ...]]]:
        """Return steps of rows of similar length in random order, followed by the rest in its order."""
        size = self._order.rows_per_step
        block = size * max(1, min(_MOST_STEPS_IN_A_BLOCK, self.steps_per_epoch // _FEWEST_BLOCKS))
        whole = len(units) - len(units) % size
        steps = []
        for begin in range(0, whole, block):
            block_units = sorted(units[begin : min(begin + block, whole)], key=lambda unit: -self._lengths[unit[0]])
            steps += [block_units[start : start + size] for start in range(0, len(block_units), size)]
        self._shuffle(steps, epoch)
        return [*steps, units[whole:]] if whole < len(units) else steps

    def _shuffle(self, what: list[Any], epoch: int) -> None:
        random.Random(self._order.seed * 1_000_003 + epoch).shuffle(what)  # noqa: S311 - an order, no secret

    def _step(self, units: list[tuple[int, ...]]) -> Step:
        settings = self._settings
        if settings.world_size == 1:
            return Step(self._passes(units, 0))
        shares = [self._passes(units, rank) for rank in range(settings.world_size)]
        return Step(shares[settings.rank], max(map(len, shares)))

    def _passes(self, units: list[tuple[int, ...]], rank: int) -> tuple[Pass, ...]:
        settings = self._settings
        rows = [row for unit in units[rank :: settings.world_size] for row in unit]
        if not rows:  # the last step of an epoch may hold fewer rows than there are processes
            shortest = min(units, key=lambda unit: sum(self._lengths[row] for row in unit))
            return (Pass(shortest, is_trained=False),)
        return tuple(divide(rows, self._lengths, settings))


def divide(rows: Sequence[int], lengths: Sequence[int], settings: PlanSettings) -> list[Pass]:
    """Divide the rows of a step into passes; `lengths` are the tokens of each row of the dataset."""
    if settings.batching == "joined":
        return list(join_rows(rows, lengths, settings.tokens_per_pass))
    # Rows of similar length need little padding.
    return list(pad_rows(sorted(rows, key=lambda row: -lengths[row]), lengths, settings))


def join_rows(rows: Sequence[int], lengths: Sequence[int], tokens_per_pass: int) -> Iterator[Pass]:
    """Divide rows, none of them longer than a pass, into as few passes as their tokens need, all of about the same size.

    `lengths` are the tokens of each row of the dataset, in which `rows` are numbers.
    """
    total = sum(lengths[row] for row in rows)
    aim = total / max(1, math.ceil(total / tokens_per_pass))
    current: list[int] = []
    tokens = 0
    for row in rows:
        over = tokens + lengths[row]
        # End the pass here if that is closer to an even division.
        if current and (over > tokens_per_pass or over - aim > aim - tokens):
            yield Pass(tuple(current))
            current, tokens = [], 0
        current.append(row)
        tokens += lengths[row]
    if current:
        yield Pass(tuple(current))


def pad_rows(rows: Sequence[int], lengths: Sequence[int], settings: PlanSettings) -> Iterator[Pass]:
    """Divide rows, the longest first, into passes side by side: batches of the settings, merged while that pads little."""
    size = settings.training.per_device_train_batch_size
    batches = [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
    current: tuple[int, ...] = ()
    apart = 0  # tokens of the batches in `current`, each padded alone
    for batch in batches:
        own = len(batch) * lengths[batch[0]]
        together = current + batch
        padded = len(together) * lengths[together[0]]
        if current and (len(together) > settings.rows_per_pass or padded > _MOST_PADDED * (apart + own)):
            yield Pass(current)
            together, apart = batch, 0
        current, apart = together, apart + own
    if current:
        yield Pass(current)


def pack_rows(order: Sequence[int], lengths: Sequence[int], max_length: int) -> list[tuple[int, ...]]:
    """Fill sequences of `max_length` tokens with whole rows: best fit, longest rows first.

    Args:
        order: Numbers of the rows; among rows of one length, earlier ones come first.
        lengths: Tokens of each row of the dataset.
        max_length: Tokens of a full sequence; no row is longer.

    Returns:
        The rows of each sequence.

    Source: best-fit decreasing, as in TRL's `pack_dataset` (Ding et al. 2024, arXiv:2404.10830).
    """
    by_space: list[list[int]] = [[] for _ in range(max_length + 1)]  # sequences that have so many tokens free
    spaces: list[int] = []  # those that occur, ascending
    packed: list[list[int]] = []
    for row in sorted(order, key=lambda row: -lengths[row]):
        length = min(lengths[row], max_length)
        position = bisect_left(spaces, length)
        if position < len(spaces):
            space = spaces[position]
            number = by_space[space].pop()
            if not by_space[space]:
                spaces.pop(position)
        else:
            space, number = max_length, len(packed)
            packed.append([])
        packed[number].append(row)
        left = space - length
        if left:
            if not by_space[left]:
                insort(spaces, left)
            by_space[left].append(number)
    return [tuple(rows) for rows in packed]


def row_plan(settings: PlanSettings, rows_sha256: str) -> RowPlan:
    """Return the row plan that a checkpoint pins."""
    return RowPlan(
        order=settings.order,
        rows_sha256=rows_sha256,
        batching=settings.batching,
        world_size=settings.world_size,
        merged=settings.merged,
    )


def choose_row_order(
    settings: PlanSettings, rows_sha256: str, pinned: RowPlan | None, checkpoint: str = ""
) -> RowOrder:
    """Return the order of the run's rows: the pinned one, in which no row of its epoch is repeated or skipped.

    Args:
        rows_sha256: Of the training rows that this attempt has read.
        pinned: What the checkpoint pins that the attempt continues from; None where an older version wrote it.
        checkpoint: Its name; empty where there is none, and the order is that of the settings.

    Raises:
        RunError: If the rows are not the same, or this number of processes cannot share the steps evenly.
    """
    if not checkpoint:
        return settings.order
    if pinned is None or pinned.rows_sha256 != rows_sha256:
        raise RunError(
            f"The training rows are not those of {checkpoint}: the dataset or its tokenization changed.",
            "Restore the dataset and the library versions in provenance.json and resume, or start a new run.",
        )
    order, before = pinned.order, pinned.world_size
    if order.rows_per_step % settings.world_size:
        what = f"This run was saved by {before} processes, and {settings.world_size} cannot share its steps evenly."
        raise RunError(what, f"Continue with {before}, or with a number that divides {order.rows_per_step}.")
    return order

"""How many passes of gradient accumulation go through the model as one.

A pass of few tokens leaves a GPU idle between its kernels, so accumulation costs time that only memory asks for. Losses are
averaged over the terms of the whole step, so merged passes change nothing but rounding and the draws of dropout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.config.run import RunConfig
from engine.data.contract import RowLengths
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.memory.compare import with_changes
from engine.memory.estimate import Estimator
from engine.models.shape import ModelShape

_ROOM_SHARE = 0.85  # of what is free, which the bound of nine runs in ten must leave
_ENOUGH_TOKENS = 16_384  # in one pass; more keep no GPU busier


@dataclass(frozen=True)
class Merging:
    """How many passes are merged at most, and why not more than one; what the run is then expected to take."""

    merged: int = 1
    why_not: str = ""
    expected_bytes: int | None = None


def choose_merging(
    config: RunConfig, shape: ModelShape | None, device: Device, rows: RowLengths, begun_with: int | None = None
) -> Merging:
    """Choose the most passes whose estimate leaves room on a device, as it is before the model is loaded.

    Args:
        begun_with: What a resumed run was begun with, which is kept where it fits at all.
    """
    training = config.training
    if not is_wanted("merged_passes"):
        return Merging(why_not=LEFT_OUT)
    if device.kind != "cuda":
        return Merging(why_not="a processor is as fast in several passes" if device.kind == "cpu" else "needs CUDA")
    if training.gradient_accumulation_steps == 1:
        return Merging(why_not="each step is one pass")
    if shape is None or config.run.spread_over > 1:
        return Merging(why_not="the estimate does not know how much room is left")
    longest = min(training.max_length, rows.longest)
    tokens = training.per_device_train_batch_size * rows.per_row * longest
    estimator = Estimator(shape, device, rows)
    for count in _counts(training.gradient_accumulation_steps, begun_with):
        if count > 1 and count != begun_with and count * tokens > _ENOUGH_TOKENS:
            continue
        changes = {
            "training.per_device_train_batch_size": training.per_device_train_batch_size * count,
            # Where a step keeps several passes, gradients of earlier ones wait.
            "training.gradient_accumulation_steps": max(2, math.ceil(training.gradient_accumulation_steps / count)),
        }
        try:
            need = estimator.need(with_changes(config, changes))
        except EngineError:
            return Merging(why_not="the estimate does not know this model")
        if need.needed_bytes <= (1.0 if count == begun_with else _ROOM_SHARE) * device.free_bytes:
            return Merging(count, "" if count > 1 else "no room", need.expected_bytes if count > 1 else None)
    return Merging(why_not="no room, or passes are large enough")


def _counts(accumulated: int, begun_with: int | None) -> list[int]:
    """What to try: how the run was begun, then the parts of a step, the largest first."""
    if begun_with == 1:
        return [1]
    parts = [count for count in range(accumulated, 1, -1) if accumulated % count == 0]
    return [*([begun_with] if begun_with is not None else []), *parts]


def lengths_of(rows: Sequence[Any]) -> RowLengths:
    """Return the lengths of rows to train on, as the estimate takes them; every token counts as trained."""
    sequences: Any = getattr(rows, "sequences", rows)  # of pairs: chosen and rejected, one after the other
    lengths = tuple(sequences.lengths())
    return RowLengths(tokens=lengths, trained=lengths, count=len(rows), per_row=len(lengths) // len(rows))

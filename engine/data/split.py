"""Which rows are trained on and which are held out: drawn with the seed, never a row on one side and its duplicate on the other.

Everything is kept in arrays: a Python object for each of ten million rows would take gigabytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config.dataset import DatasetConfig

Positions = NDArray[np.uint32]


class Split(NamedTuple):
    """Positions in the sequence of kept rows, in ascending order; `train` repeats one where a weight asks for it."""

    train: Positions
    held_out: Positions


def draw_split(
    digests: Sequence[int],
    config: DatasetConfig,
    seed: int,
    *,
    parts: Sequence[int] = (),
    weights: Sequence[float] = (1.0,),
) -> Split:
    """Draw the sample, then the held-out rows, then what the weights of a mixture ask for.

    Rows that say the same share a digest and stay together. At least one group is held out where `eval_fraction` is
    above zero and there are two groups to choose from; at least one always remains to train on. Held-out rows are never
    weighted: they measure every source as it is.

    Args:
        digests: Of the kept rows, in order, 64 bits each.
        config: `max_samples` and `eval_fraction`.
        seed: Draws the same rows again.
        parts: Of the kept rows: which source of a mixture each comes from.
        weights: Of the sources.
    """
    sample = _draw_sample(len(digests), config.max_samples, seed)
    sampled = np.asarray(digests, dtype=np.uint64)
    if len(sample) < len(sampled):
        sampled = sampled[sample]
    held_out = _draw_held_out(sampled, config.eval_fraction, seed)
    train = sample[~held_out]
    if any(weight != 1.0 for weight in weights):
        train = _weighted(train, np.asarray(parts), weights, seed)
    return Split(train, sample[held_out])


def _generator(seed: int, purpose: int) -> np.random.Generator:
    """Draws that do not depend on how much was drawn for another purpose."""
    return np.random.default_rng([seed, purpose])


def _draw_sample(count: int, max_samples: int | None, seed: int) -> Positions:
    if max_samples is None or max_samples >= count:
        return np.arange(count, dtype=np.uint32)
    return np.sort(_generator(seed, 0).choice(count, size=max_samples, replace=False)).astype(np.uint32)


def _draw_held_out(digests: NDArray[np.uint64], eval_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of the rows are held out."""
    held_out = np.zeros(len(digests), dtype=np.bool_)
    if eval_fraction <= 0 or len(digests) < 2:
        return held_out
    groups, sizes = _groups_of(digests)
    if len(sizes) < 2:
        return held_out
    wanted = max(1, round(eval_fraction * len(digests)))
    order = _generator(seed, 1).permutation(len(sizes))[
        :-1
    ]  # the last one stays, so that something is left to train on
    chosen: list[int] = []
    room = wanted
    for group in order:
        if sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
        if not room:
            break
    if not chosen:  # every group is larger than the share asked for
        chosen.append(order[np.argmin(sizes[order])])
    is_chosen = np.zeros(len(sizes), dtype=np.bool_)
    is_chosen[chosen] = True
    return is_chosen[groups]


def _groups_of(digests: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The group of each row, numbered in the order of first appearance, and how many rows each group has."""
    order = np.argsort(digests).astype(np.uint32)
    begins = np.ones(len(order), dtype=np.bool_)
    ordered = digests[order]
    begins[1:] = ordered[1:] != ordered[:-1]
    del ordered
    # Numbers must not depend on what a digest happens to be, or a draw would change with the way digests are made.
    first_rows = np.minimum.reduceat(order, np.flatnonzero(begins))
    appears = np.zeros(len(order), dtype=np.bool_)
    appears[first_rows] = True
    number = (np.cumsum(appears, dtype=np.uint32) - np.uint32(1))[first_rows]
    groups = np.empty(len(order), dtype=np.uint32)
    groups[order] = number[np.cumsum(begins, dtype=np.uint32) - np.uint32(1)]
    return groups, np.bincount(groups).astype(np.uint32)


def _weighted(train: Positions, parts: NDArray[np.int8], weights: Sequence[float], seed: int) -> Positions:
    """Each source's rows as often as its weight says: whole times, and a drawn share for the rest."""
    chosen = []
    for part, weight in enumerate(weights):
        rows = train[parts[train] == part]
        whole, rest = divmod(round(weight * len(rows)), len(rows)) if len(rows) else (0, 0)
        drawn = _generator(seed, 2 + part).choice(rows, size=rest, replace=False)
        chosen.extend([np.repeat(rows, whole), drawn])
    return np.sort(np.concatenate(chosen))

"""Which rows are trained on and which are held out: drawn with the seed, never a row on one side and its duplicate on the other.

Rows are stored in arrays: Python objects for ten million rows would take gigabytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loratory.engine.config.run import DatasetConfig

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
    chosen: Sequence[int] = (),
) -> Split:
    """Draw the sample, the held-out rows, and the repetitions by the weights of a mixture.

    Equal rows share a digest and stay together. At least one group is held out where `eval_fraction` is
    above zero and there are two groups to choose from; at least one always remains to train on. Weights below 1 thin what is
    held out as well, so that it resembles what is learned; weights above 1 repeat nothing there. `digests` of 64 bits and
    `parts`, the numbers of their sources, are those of the kept rows; `weights` are those of the sources. Rows at the `chosen`
    positions are held out as well, with their equals, and never thinned.
    """
    sample = _draw_sample(len(digests), config.max_samples, seed)
    sampled = np.asarray(digests, dtype=np.uint64)
    if len(sample) < len(sampled):
        sampled = sampled[sample]
    held_out = draw_held_out(sampled, config.eval_fraction, seed)
    always = np.isin(sampled, np.asarray(digests, dtype=np.uint64)[np.asarray(chosen, dtype=np.int64)])
    train, random_rows = sample[~(held_out | always)], sample[held_out & ~always]
    if any(weight != 1.0 for weight in weights):
        train = _draw_weighted(train, np.asarray(parts), weights, seed)
        # As they were where so few rows are held out that none would be left.
        fewer = _draw_weighted(random_rows, np.asarray(parts), [min(1.0, weight) for weight in weights], seed)
        random_rows = fewer if len(fewer) or np.any(always) else random_rows
    return Split(train, np.sort(np.concatenate([random_rows, sample[always]])))


def _generator(seed: int, purpose: int) -> np.random.Generator:
    """Draws that do not depend on how much was drawn for another purpose."""
    return np.random.default_rng([seed, purpose])


def _draw_sample(count: int, max_samples: int | None, seed: int) -> Positions:
    if max_samples is None or max_samples >= count:
        return np.arange(count, dtype=np.uint32)
    return np.sort(_generator(seed, 0).choice(count, size=max_samples, replace=False)).astype(np.uint32)


def draw_held_out(digests: NDArray[np.uint64], eval_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which of the rows are held out: those whose mixed digests are the smallest.

    Equal rows have equal digests and so stay together; whether a row is held out does not depend on its position, and
    hardly on the other rows.
    """
    nothing = np.zeros(len(digests), dtype=np.bool_)
    if eval_fraction <= 0 or len(digests) < 2:
        return nothing
    keys = mix_digests(digests, seed)
    target = max(1, round(eval_fraction * len(digests)))
    held_out: NDArray[np.bool_] = keys <= np.partition(keys, target - 1)[target - 1]
    if np.count_nonzero(held_out) == target:
        return held_out
    # A group of equal rows reaches across the share that was asked for: take the groups that fit into it.
    values, sizes = np.unique(keys, return_counts=True)
    if len(values) < 2:
        return nothing
    chosen_keys = []
    room = target
    for value, size in zip(
        values[:-1], sizes[:-1], strict=True
    ):  # the last group stays: there must be rows to train on
        if size <= room:
            chosen_keys.append(value)
            room -= size
        if not room:
            break
    return np.isin(keys, chosen_keys or values[:-1][[np.argmin(sizes[:-1])]])


def mix_digests(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Scatter digests by a seed (the finalizer of SplitMix64, Steele et al. 2014, figure 16)."""
    keys = digests ^ np.random.default_rng(seed).integers(2**64, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return keys


def _draw_weighted(positions: Positions, parts: NDArray[np.int8], weights: Sequence[float], seed: int) -> Positions:
    """Repeat each source's rows by its weight: whole times, and a random share for the rest."""
    samples = []
    for part, weight in enumerate(weights):
        rows = positions[parts[positions] == part]
        whole, rest = divmod(round(weight * len(rows)), len(rows)) if len(rows) else (0, 0)
        rest_rows = _generator(seed, 2 + part).choice(rows, size=rest, replace=False)
        samples.extend([np.repeat(rows, whole), rest_rows])
    return np.sort(np.concatenate(samples))

"""Which rows are trained on and which are held out: drawn with the seed, never a row on one side and its duplicate on the other."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from engine.config.dataset import DatasetConfig


class Split(NamedTuple):
    """Positions in the sequence of kept rows. `train` may repeat a position, where a weight asks for it."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


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
        digests: Of the kept rows, in order.
        config: `max_samples` and `eval_fraction`.
        seed: Draws the same rows again.
        parts: Of the kept rows: which source of a mixture each comes from.
        weights: Of the sources.
    """
    sample = _draw_sample(len(digests), config.max_samples, seed)
    held_out = _draw_held_out([digests[position] for position in sample], config.eval_fraction, seed)
    train = [position for number, position in enumerate(sample) if number not in held_out]
    if any(weight != 1.0 for weight in weights):
        train = _weighted(train, parts, weights, seed)
    return Split(tuple(train), tuple(sample[number] for number in sorted(held_out)))


def _draw_sample(count: int, max_samples: int | None, seed: int) -> Sequence[int]:
    if max_samples is None or max_samples >= count:
        return range(count)
    return sorted(random.Random(f"sample {seed}").sample(range(count), max_samples))  # noqa: S311 - no secret


def _draw_held_out(digests: Sequence[int], eval_fraction: float, seed: int) -> frozenset[int]:
    groups: dict[int, list[int]] = {}
    for number, digest in enumerate(digests):
        groups.setdefault(digest, []).append(number)
    if eval_fraction <= 0 or len(groups) < 2:
        return frozenset()
    wanted = max(1, round(eval_fraction * len(digests)))
    order = list(groups.values())
    random.Random(f"held out {seed}").shuffle(order)  # noqa: S311 - no secret
    held_out: list[int] = []
    for group in order[:-1]:  # the last one drawn stays, so that something is left to train on
        if len(held_out) + len(group) <= wanted:
            held_out.extend(group)
        if len(held_out) == wanted:
            break
    # Where every group is larger than the share asked for, the smallest is held out.
    return frozenset(held_out or sorted(order[:-1], key=len)[0])


def _weighted(train: Sequence[int], parts: Sequence[int], weights: Sequence[float], seed: int) -> list[int]:
    """Each source's rows as often as its weight says: whole times, and a drawn share for the rest."""
    chosen: list[int] = []
    for part, weight in enumerate(weights):
        rows = [position for position in train if parts[position] == part]
        whole, rest = divmod(round(weight * len(rows)), len(rows)) if rows else (0, 0)
        drawn = random.Random(f"weight {seed} {part}").sample(rows, rest)  # noqa: S311 - no secret
        chosen.extend(rows * whole + drawn)
    return sorted(chosen)

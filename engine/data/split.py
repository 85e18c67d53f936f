"""Which rows are held out: drawn with the seed, and never one whose duplicate is trained on."""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Split(NamedTuple):
    """Positions in the sequence of kept rows, each in ascending order."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def draw_split(digests: Sequence[int], eval_fraction: float, seed: int) -> Split:
    """Hold out a share of the rows.

    Rows that say the same share a digest and stay together. At least one group is held out where `eval_fraction` is
    above zero and there are two groups to choose from; at least one always remains to train on.

    Args:
        digests: Of the kept rows, in order.
        eval_fraction: Share of the rows to hold out; met as nearly as whole groups allow.
        seed: Draws the same rows again.
    """
    groups: dict[int, list[int]] = {}
    for position, digest in enumerate(digests):
        groups.setdefault(digest, []).append(position)
    if eval_fraction <= 0 or len(groups) < 2:
        return Split(tuple(range(len(digests))), ())
    wanted = max(1, round(eval_fraction * len(digests)))
    order = list(groups.values())
    random.Random(seed).shuffle(order)  # noqa: S311 - a draw, not a secret
    held_out: list[int] = []
    for index, group in enumerate(order):
        remaining_groups = len(order) - index - 1
        if len(held_out) >= wanted or remaining_groups == 0:
            break
        if held_out and len(held_out) + len(group) > wanted:
            continue
        held_out.extend(group)
    chosen = set(held_out)
    train = tuple(position for position in range(len(digests)) if position not in chosen)
    return Split(train, tuple(sorted(held_out)))


def draw_sample(count: int, max_samples: int | None, seed: int) -> tuple[int, ...]:
    """Positions of the rows to use, in ascending order: all of them, or `max_samples` drawn evenly."""
    if max_samples is None or max_samples >= count:
        return tuple(range(count))
    return tuple(sorted(random.Random(seed).sample(range(count), max_samples)))  # noqa: S311 - a draw, not a secret

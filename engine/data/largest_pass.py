"""Find the largest pass of a run with the trainer's own planner, before the run starts."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.step_plan import EpochPlanner, Pass, PlanSettings

_MOST_ROWS = 65_536  # of a step, where its largest pass is looked for
_PLANNED_ROWS = 4096  # at least so many of a run are planned to find its largest pass, which takes some milliseconds


class LargestPass(NamedTuple):
    """The largest pass of a run."""

    lengths: tuple[int, ...]  # tokens of each row of the pass: of a sequence, or of two that share their prompt
    trained_tokens: int  # the most of any pass
    sizes: int  # different numbers of tokens that passes have, padding included
    sequences: int  # in it
    longest: int  # tokens of its longest sequence
    pixels: int = 0  # of images, the most of any pass


@lru_cache(maxsize=128)
def largest_pass(rows: RowLengths, settings: PlanSettings, fills_up_to: int = 1) -> LargestPass:
    """Plan a run of these rows, or its first thousands of rows, and return the largest of its passes.

    `fills_up_to` is what the tokens of joined rows are filled up to a multiple of.
    """
    sequences, passing, trained, pixels = _planned_rows(rows, settings)
    repeats = max(1, settings.sequences_per_row // rows.per_row)  # where only one sequence of each row is known
    largest: tuple[int, int, tuple[int, ...], tuple[int, ...]] = (0, 0, (), ())
    most_trained, most_pixels, sizes = 0, 0, set[int]()
    for forward_pass in _passes_of_run(EpochPlanner(list(map(sum, sequences)), settings), settings.training):
        tokens = tuple(length for row in forward_pass.rows for length in passing[row]) * repeats
        longest = max(tokens)
        size = -(-sum(tokens) // fills_up_to) if settings.batching == "joined" else len(tokens) * longest
        largest = max(largest, (size, longest, tokens, forward_pass.rows))
        most_trained = max(most_trained, sum(trained[row] for row in forward_pass.rows) * repeats)
        most_pixels = max(most_pixels, sum(pixels[row] for row in forward_pass.rows) * repeats)
        sizes.add(size)
    sequence_lengths = [length for row in largest[-1] for length in sequences[row]] * repeats
    longest = max(sequence_lengths)
    return LargestPass(largest[2], most_trained, len(sizes), len(sequence_lengths), longest, most_pixels)


def _planned_rows(
    rows: RowLengths, settings: PlanSettings
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[int], list[int]]:
    """Return the known rows after the cut, repeated if a step may have more rows than are known.

    Returns:
        Of each row, the tokens of its sequences, the same with a shared prompt counted once, its trained tokens, and the
        pixels of its images.
    """
    cut, each = settings.training.max_length, rows.per_row
    copies = math.ceil(min(rows.count, settings.order.rows_per_step, _MOST_ROWS) / (len(rows.tokens) // each))
    sequences = _in_groups([min(length, cut) for length in rows.tokens], each)
    trained = [sum(row) for row in _in_groups([min(tokens, cut) for tokens in rows.trained], each)]
    passing = sequences
    if settings.shares_prompts and rows.shared:
        passing = [(sum(row) - min(*row, shared),) for row, shared in zip(sequences, rows.shared, strict=True)]
    pixels = [sum(row) for row in _in_groups(rows.pixels or (0,) * len(rows.tokens), each)]
    return sequences * copies, passing * copies, trained * copies, pixels * copies


def _passes_of_run(planner: EpochPlanner, training: TrainingConfig) -> Iterator[Pass]:
    """Yield the passes of a run, or of the epochs that hold its first thousands of rows."""
    left = training.max_steps  # steps
    if left <= 0:
        left = math.ceil(training.num_train_epochs * planner.steps_per_epoch)
    planned = 0
    for epoch in range(left):
        for step in itertools.islice(planner.steps(epoch), left):
            yield from step.passes
            planned += sum(len(forward_pass.rows) for forward_pass in step.passes)
        left -= planner.steps_per_epoch
        if left <= 0 or planned >= _PLANNED_ROWS:
            return


def _in_groups(values: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(values[start : start + size]) for start in range(0, len(values), size)]

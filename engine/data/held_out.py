"""Which rows a run holds out: the very rows that its training measures itself on, found without training."""

from array import array
from collections.abc import Generator

from engine.config.dataset import DatasetConfig
from engine.data.check import check_steps
from engine.data.examine import Examined, Renderer
from engine.data.report import CheckProgress, HeldOutRows
from engine.data.source import SourceOptions
from engine.data.split import draw_split


def held_out_steps(
    config: DatasetConfig, options: SourceOptions, *, seed: int, renderer: Renderer, count: int
) -> Generator[CheckProgress | None, None, HeldOutRows]:
    """One pass over every row; yields as `check_steps` does, and closing it stops the pass.

    Args:
        config: The dataset.
        options: How to open its sources.
        seed: The run's, which drew the rows.
        renderer: The run's model and max_length: rows that its template refuses are in no part.
        count: How many rows at most.

    Raises:
        DatasetError: If the source cannot be read, or no row of it can be learned from.
    """
    rows, digests, parts = array("q"), array("Q"), array("b")

    def keep(examined: Examined) -> None:
        rows.append(examined.record.row)
        digests.append(examined.digest)
        parts.append(examined.part)

    report = yield from check_steps(config, options, seed=seed, renderer=renderer, on_kept=keep)
    weights = tuple(part.weight for part in report.parts)
    held_out = [rows[position] for position in draw_split(digests, config, seed, parts=parts, weights=weights).held_out]
    chosen = held_out
    if count < len(held_out):
        chosen = [held_out[number * len(held_out) // count] for number in range(count)]
    return HeldOutRows(rows=tuple(chosen), total=len(held_out))

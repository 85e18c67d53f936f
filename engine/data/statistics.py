"""How long the sequences are, in the few figures that decide max_length."""

import math
from collections.abc import Sequence

import numpy as np

from engine.data.report import Histogram, TokenLengths

_BINS = 48


def length_statistics(lengths: Sequence[int], max_length: int | None) -> TokenLengths | None:
    """Summarise lengths in tokens; None if there are none.

    Percentiles are values that occur (nearest rank): p50 is the shortest length that at least half of the sequences do
    not exceed.
    """
    if not lengths:
        return None
    ordered = np.sort(np.asarray(lengths, dtype=np.int64))
    count = len(ordered)

    def nearest_rank(share: float) -> int:
        return int(ordered[max(0, math.ceil(share * count) - 1)])

    return TokenLengths(
        min=int(ordered[0]),
        p50=nearest_rank(0.50),
        p95=nearest_rank(0.95),
        max=int(ordered[-1]),
        over_max_length=0 if max_length is None else int(count - np.searchsorted(ordered, max_length, side="right")),
        histogram=_histogram(ordered),
    )


def _histogram(ordered: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Histogram:
    """Bins of equal, whole width from 0 beyond the longest."""
    width = max(1, math.ceil((int(ordered[-1]) + 1) / _BINS))
    edges = np.arange(0, int(ordered[-1]) + width + 1, width)
    counts, _ = np.histogram(ordered, bins=edges)
    return Histogram(edges=tuple(int(edge) for edge in edges), counts=tuple(int(value) for value in counts))

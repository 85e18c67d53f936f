"""A million points, drawn as a few hundred that look the same."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_LTTB_CANDIDATES = 4  # extremes looked at for each point that is kept


def thin(x: Array, y: Array, points: int) -> npt.NDArray[np.intp]:
    """Choose which points to draw: extremes stay, and so do the first and the newest.

    MinMaxLTTB (Van Der Donckt et al. 2023, arXiv:2305.00332): of the extremes of each stretch those are kept that
    change the picture most. Points whose y is NaN are no picture and are left out, except the newest.

    Args:
        x: Rising, shape (n,).
        y: Shape (n,).
        points: How many to keep at most, at least 4.

    Returns:
        Rising positions into both, shape (at most points,).
    """
    assert x.shape == y.shape, f"x has {x.shape[0]} values, y {y.shape[0]}"
    assert points >= 4, f"{points} points are too few for a curve"
    newest = len(y) - 1
    if len(y) > points and _are_finite(y):
        kept = _lttb(x, y, points - 1)
    else:
        finite = np.flatnonzero(np.isfinite(y))
        kept = finite if len(finite) <= points else finite[_lttb(x[finite], y[finite], points - 1)]
    if len(y) and (not len(kept) or kept[-1] != newest):
        kept = np.append(kept[: points - 1], newest)
    return kept


def _are_finite(values: Array) -> bool:
    """In half the time of looking at each: only a sum that is not finite needs a second look."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(values)) or np.isfinite(values).all())


def _lttb(x: Array, y: Array, points: int) -> npt.NDArray[np.intp]:
    # Compiled code, and only charts of long runs need it.
    from tsdownsample import MinMaxLTTBDownsampler

    chosen: Any = MinMaxLTTBDownsampler().downsample(
        np.ascontiguousarray(x), np.ascontiguousarray(y), n_out=points, minmax_ratio=_LTTB_CANDIDATES
    )
    return np.asarray(chosen, dtype=np.intp)

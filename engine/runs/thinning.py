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
    is_finite = np.isfinite(y)
    newest = len(y) - 1
    if len(y) > points and bool(is_finite.all()):
        kept = _lttb(x, y, points - 1)
    else:
        finite = np.flatnonzero(is_finite)
        kept = finite if len(finite) <= points else finite[_lttb(x[finite], y[finite], points - 1)]
    if len(y) and (not len(kept) or kept[-1] != newest):
        kept = np.append(kept[: points - 1], newest)
    return kept


def smooth(values: Array, weight: float) -> Array:
    """Exponential moving average with TensorBoard's correction for the start; NaN values are passed over.

    Args:
        values: Shape (n,).
        weight: 0 smooths nothing, values close to 1 much.

    Source: debiased EMA as in TensorBoard's `resmoothDataset`; Kingma and Ba 2015, section 3 (arXiv:1412.6980).
    """
    assert 0.0 <= weight < 1.0, f"weight {weight} is not in [0, 1)"
    finite = np.isfinite(values)
    if weight > 0.0 and finite.all():
        return _debiased_average(values, weight)
    smoothed = np.full(len(values), np.nan)
    if weight == 0.0:
        smoothed[finite] = values[finite]
        return smoothed
    smoothed[finite] = _debiased_average(values[finite], weight)
    return smoothed


def _debiased_average(values: Array, weight: float) -> Array:
    """Blocks short enough that weight**block does not underflow, each one vectorized."""
    block = max(1, min(4096, int(-600.0 / np.log(weight)) if weight > 0 else 1))
    result = np.empty(len(values))
    all_powers = weight ** np.arange(1, block + 1)
    carried = 0.0
    for start in range(0, len(values), block):
        part = values[start : start + block]
        powers = all_powers[: len(part)]
        average = powers * (carried + (1.0 - weight) * np.cumsum(part / powers))
        result[start : start + block] = average
        carried = float(average[-1])
    # Beyond some hundred values (more for weights close to 1) the correction is 1 in every digit.
    corrected = min(len(values), int(-40.0 / np.log(weight)) + 1)
    result[:corrected] /= 1.0 - weight ** np.arange(1, corrected + 1)
    return result


def _lttb(x: Array, y: Array, points: int) -> npt.NDArray[np.intp]:
    # Compiled code, and only charts of long runs need it.
    from tsdownsample import MinMaxLTTBDownsampler

    chosen: Any = MinMaxLTTBDownsampler().downsample(
        np.ascontiguousarray(x), np.ascontiguousarray(y), n_out=points, minmax_ratio=_LTTB_CANDIDATES
    )
    return np.asarray(chosen, dtype=np.intp)

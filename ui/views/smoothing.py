"""Exponential smoothing of a curve, as people know it from TensorBoard; a million points take milliseconds."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_BLOCK = 64


def smoothed(values: Array, weight: float) -> Array:
    """Exponential moving average, corrected for its start as Adam's moments are.

    Args:
        values: Finite values, shape (points,).
        weight: Share of the past in each point, from 0 (nothing is smoothed) to below 1.

    Returns:
        Shape (points,).

    Source: Kingma and Ba 2015, section 3 (arXiv:1412.6980), for the correction.
    """
    count = len(values)
    if weight <= 0 or count == 0:
        return values
    # Inside a block the average is one small triangular product; only the last value of each block is carried on.
    blocks = -(-count // _BLOCK)
    padded = np.zeros(blocks * _BLOCK)
    padded[:count] = values
    ages = np.arange(_BLOCK)[:, None] - np.arange(_BLOCK)[None, :]
    kernel = np.where(ages >= 0, (1 - weight) * weight ** np.maximum(ages, 0), 0.0)  # (position, source)
    within = padded.reshape(blocks, _BLOCK) @ kernel.T
    carried = np.empty(blocks)
    last, decay = 0.0, weight**_BLOCK
    for block in range(blocks):
        carried[block] = last
        last = decay * last + within[block, -1]
    averages: Array = (within + carried[:, None] * weight ** np.arange(1, _BLOCK + 1)).reshape(-1)[:count]
    # Beyond this many points the correction is 1 in double precision.
    young = min(count, int(np.ceil(-37 / np.log(weight))))
    averages[:young] /= 1 - weight ** np.arange(1, young + 1)
    return averages

"""Curves that a person can read: an exponential moving average, continued where the last look ended."""

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_BLOCK_VALUES = 4096
_WEIGHTS_KEPT = 2  # a curve is looked at with one; a million values take 8 megabytes


def smooth(values: Array, weight: float) -> Array:
    """Exponential moving average with TensorBoard's correction for the start; NaN values are passed over.

    Args:
        values: Shape (n,).
        weight: 0 smooths nothing, values close to 1 much.

    Source: debiased EMA as in TensorBoard's `resmoothDataset`; Kingma and Ba 2015, section 3 (arXiv:1412.6980).
    """
    assert 0.0 <= weight < 1.0, f"weight {weight} is not in [0, 1)"
    finite = np.isfinite(values)
    smoothed = np.full(len(values), np.nan)
    known = values[finite]
    if weight > 0.0:
        known = GrowingAverage(weight).of(known)
    smoothed[finite] = known
    return smoothed


class GrowingAverage:
    """What `smooth` gives for values that are all finite, of which there are more each time; only new ones are computed.

    Args:
        weight: As `smooth` takes it, more than 0.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._lock = threading.Lock()  # guards what stands below: several pages may look at one run at once
        self._buffer = np.empty(0)
        self._count = 0
        self._carried = 0.0  # the newest average, before the correction for the start

    def of(self, values: Array) -> Array:
        """The average at each of the values, of shape (n,); not to be written.

        Args:
            values: All that there are, of shape (n,); those of former calls stay what they were.
        """
        with self._lock:
            if len(values) > len(self._buffer):
                buffer = np.empty(max(len(values), 2 * len(self._buffer)))
                buffer[: self._count] = self._buffer[: self._count]
                self._buffer = buffer
            if len(values) > self._count:
                self._continue(values)
            average = self._buffer[: len(values)]
            average.flags.writeable = False
            return average

    def _continue(self, values: Array) -> None:
        """Block by block: short enough that weight**block does not underflow and all stays in the processor's cache."""
        weight = self._weight
        block = max(1, min(_BLOCK_VALUES, int(-600.0 / np.log(weight))))
        powers = weight ** np.arange(1, min(block, len(values) - self._count) + 1)
        factors = (1.0 - weight) / powers
        begin = self._count
        for start in range(begin, len(values), block):
            part = values[start : start + block]
            average = self._buffer[start : start + len(part)]
            np.multiply(part, factors[: len(part)], out=average)
            np.cumsum(average, out=average)
            average += self._carried
            average *= powers[: len(part)]
            self._carried = float(average[-1])
        self._count = len(values)
        # Beyond some hundred values (more for weights close to 1) the correction is 1 in every digit.
        corrected = min(self._count, int(-40.0 / np.log(weight)) + 1)
        if begin < corrected:
            self._buffer[begin:corrected] /= 1.0 - weight ** np.arange(begin + 1, corrected + 1)


class GrowingAverages:
    """Averages of one growing series, for the weights that were asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _kept
        self._kept: OrderedDict[float, GrowingAverage] = OrderedDict()

    def of(self, values: Array, weight: float) -> Array:
        """As `GrowingAverage.of`, for any weight in [0, 1)."""
        if weight == 0.0:
            return values
        with self._lock:
            average = self._kept.setdefault(weight, GrowingAverage(weight))
            self._kept.move_to_end(weight)
            while len(self._kept) > _WEIGHTS_KEPT:
                self._kept.popitem(last=False)
        return average.of(values)

"""The logged steps of a run as columns of numbers: a million of them in 80 megabytes, appended to in place."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pydantic_core

from loratory.engine.config.objectives import METRICS
from loratory.engine.hardware.cuda import GPU_READINGS
from loratory.engine.runs.history.events import StepData
from loratory.engine.scoring.registry import SCORERS

Array = npt.NDArray[np.float64]


def smooth(values: Array, weight: float) -> Array:
    """Return the exponential moving average with TensorBoard's correction for the start; NaN values are skipped.

    Args:
        values: Shape (n,).
        weight: 0 smooths nothing, values close to 1 much.

    Source: debiased EMA as in TensorBoard's `resmoothDataset`; Kingma and Ba 2015, section 3 (arXiv:1412.6980).
    """
    assert 0.0 <= weight < 1.0, f"weight {weight} is not in [0, 1)"
    # Without pandas, whose import takes 60 MiB of a server that draws curves; a million steps take a quarter of a second.
    is_finite = np.isfinite(values)
    sums = itertools.accumulate(values[is_finite].tolist(), lambda total, value: total * weight + value)
    averages = np.full(len(values), np.nan)
    averages[is_finite] = np.fromiter(sums, float) * (1 - weight) / (1 - weight ** np.arange(1, is_finite.sum() + 1))
    return averages


StepColumn = Literal[
    "step",
    "time",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "trained_tokens",
    "tokens_per_second",
    "memory_bytes",
]
COLUMNS: tuple[StepColumn, ...] = get_args(StepColumn)
# That some steps have, in groups: a run has columns for those groups alone of which it has values.
MEASURES: tuple[tuple[str, ...], ...] = (
    (*METRICS, *GPU_READINGS),
    (
        "reward", "reward_std", "frac_reward_zero_std", "entropy", "scorer_errors", "completions/mean_length",
        "completions/clipped_ratio", *(f"rewards/{name}{more}/mean" for name in SCORERS for more in ("", "#2", "#3")),
    ),
)  # fmt: skip


class StepSeries:
    """The logged steps, one float64 array of shape (steps,) for each column; never changes once it was handed out.

    Values that a step did not report are NaN.
    """

    def __init__(self, columns: Array, metrics: Sequence[Array] = ()) -> None:
        self._columns = columns
        self._metrics = metrics  # of each group of `MEASURES`, the steps first
        self._smoothed: dict[float, Array] = {}  # by weight, so several pages compute one curve once

    def __len__(self) -> int:
        return int(self._columns.shape[1])

    def column(self, name: StepColumn) -> Array:
        """One value for each logged step."""
        values: Array = self._columns[COLUMNS.index(name)]
        return values

    def metric(self, name: str) -> tuple[Array, Array]:
        """Return the steps that have a finite value of one of the `MEASURES`, and the values."""
        for names, rows in zip(MEASURES, self._metrics, strict=False):
            if name in names:
                values = rows[1 + names.index(name)]
                is_finite = np.isfinite(values)
                return rows[0][is_finite], values[is_finite]
        return np.empty(0), np.empty(0)

    def is_complete(self, name: StepColumn) -> bool:
        """Whether every step has a finite value."""
        return bool(np.isfinite(self.column(name)).all())

    @functools.cached_property
    def throughput(self) -> tuple[float, float]:
        """Tokens and seconds of the training itself; loading, evaluations and saves do not count."""
        speeds, tokens = self.column("tokens_per_second"), np.diff(self.column("tokens"), prepend=0.0)
        is_usable = (speeds > 0) & (tokens > 0) & np.isfinite(speeds)
        seconds = np.divide(tokens, speeds, out=np.zeros_like(tokens), where=is_usable)
        return float(np.sum(tokens, where=is_usable)), float(np.sum(seconds))

    def smoothed_losses(self, weight: float) -> Array:
        """Return what `smooth` makes of the losses, of shape (steps,); not to be written."""
        if weight not in self._smoothed:
            self._smoothed[weight] = smooth(self.losses, weight)
        return self._smoothed[weight]

    def last(self, name: StepColumn) -> float | None:
        """Return the newest value; None where there is none, or it is not finite."""
        if not len(self):
            return None
        value = float(self.column(name)[-1])
        return value if math.isfinite(value) else None

    def highest(self, name: StepColumn) -> int | None:
        """Return the highest value; None where there is none."""
        values = self.column(name)
        return int(values[is_finite].max()) if (is_finite := np.isfinite(values)).any() else None

    @property
    def steps(self) -> Array:
        return self.column("step")

    @property
    def losses(self) -> Array:
        return self.column("loss")


class GrowingColumns:
    """Rows appended in amortized constant time; what was handed out before is never written again."""

    def __init__(self, columns: int = len(COLUMNS)) -> None:
        self._buffer = np.empty((columns, 16))  # (columns, capacity); the first one has the steps
        self._count = 0

    def array(self) -> Array:
        """Return the rows so far, of shape (columns, steps); not to be written."""
        view = self._buffer[:, : self._count]
        view.flags.writeable = False
        return view

    def last_step(self) -> float:
        return float(self._buffer[0, self._count - 1]) if self._count else 0.0

    def extend(self, rows: Array) -> None:
        size = self._count + rows.shape[1]
        if size > self._buffer.shape[1]:
            self._move(capacity=max(size, 2 * self._buffer.shape[1]))
        self._buffer[:, self._count : size] = rows
        self._count = size

    def truncate(self, step: int) -> None:
        count = int(np.searchsorted(self._buffer[0, : self._count], step, side="right"))
        if count < self._count:
            self._count = count
            self._move(capacity=self._buffer.shape[1])  # earlier series still show the rows beyond

    def _move(self, capacity: int) -> None:
        buffer = np.empty((len(self._buffer), capacity))
        buffer[:, : self._count] = self._buffer[:, : self._count]
        self._buffer = buffer


def row_of(data: StepData, time: float) -> Array:
    values = [time if name == "time" else getattr(data, name) for name in COLUMNS]
    return np.array(values, dtype=np.float64)[:, np.newaxis]  # None becomes NaN


def tables_of(data: StepData, time: float) -> list[Array]:
    """Return a step as a row, and as one of each group of `MEASURES` that it has a value of."""
    return [row_of(data, time), *_metric_rows([(data.step, data.metrics | data.gpu)])]


def _metric_rows(steps: list[tuple[int, dict[str, float]]]) -> list[Array]:
    """Return each group of measures as columns, (1 + measures, steps that have one) with the steps first."""
    groups = []
    for names in MEASURES:
        known = ((step, metrics) for step, metrics in steps if not metrics.keys().isdisjoint(names))
        rows = [[step, *(metrics.get(name, math.nan) for name in names)] for step, metrics in known]
        groups.append(np.array(rows, dtype=np.float64).reshape(-1, 1 + len(names)).T)
    return groups


def is_step_line(line: bytes) -> bool:
    return line.find(b'"kind":"step"', 0, 120) >= 0


def rows_of_plain_steps(lines: list[bytes], attempt: int) -> list[Array] | None:
    """Return lines as columns, (columns, lines), and their measures; None unless each is a step of this attempt.

    Building a typed event for each of a million steps would take ten times as long.
    """
    try:
        records: list[dict[str, Any]] = [pydantic_core.from_json(line) for line in lines]
        if any(item["kind"] != "step" or item["attempt"] != attempt for item in records):
            return None
        steps = [item["data"] | {"time": item["time"]} for item in records]
        columns = [[step[name] for step in steps] for name in COLUMNS]  # None becomes NaN
        metrics = _metric_rows([(step["step"], {**step.get("metrics", {}), **step.get("gpu", {})}) for step in steps])
        return [np.array(columns, dtype=np.float64), *metrics]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None  # the careful way decides, line by line


def thin(x: Array, y: Array, points: int) -> npt.NDArray[np.intp]:
    """Choose which points to draw, keeping extremes, the first and the newest point.

    MinMaxLTTB (Van Der Donckt et al. 2023, arXiv:2305.00332): of the extremes of each stretch those are kept that
    change the picture most. Points whose y is NaN are left out, except the newest.

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
    if len(y) > points and np.isfinite(y).all():
        indexes = _lttb(x, y, points - 1)
    else:
        finite = np.flatnonzero(np.isfinite(y))
        indexes = finite if len(finite) <= points else finite[_lttb(x[finite], y[finite], points - 1)]
    if len(y) and (not len(indexes) or indexes[-1] != newest):
        indexes = np.append(indexes[: points - 1], newest)
    return indexes


def _lttb(x: Array, y: Array, points: int) -> npt.NDArray[np.intp]:
    # Compiled code, and only charts of long runs need it.
    from tsdownsample import MinMaxLTTBDownsampler

    # Four extremes are looked at for each point that is kept.
    indexes: Any = MinMaxLTTBDownsampler().downsample(
        np.ascontiguousarray(x), np.ascontiguousarray(y), n_out=points, minmax_ratio=4
    )
    return np.asarray(indexes, dtype=np.intp)

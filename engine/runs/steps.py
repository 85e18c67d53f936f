"""The logged steps of a run as columns of numbers: a million of them in 80 megabytes, appended to in place."""

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pydantic_core

from engine.runs.events import StepData

Array = npt.NDArray[np.float64]

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


class StepSeries:
    """The logged steps, one float64 array of shape (steps,) for each column; never changes once it was handed out.

    What a step did not report is NaN. `step` rises strictly.
    """

    def __init__(self, columns: Array) -> None:
        self._columns = columns  # (columns, steps)

    def __len__(self) -> int:
        return int(self._columns.shape[1])

    def column(self, name: StepColumn) -> Array:
        """One value for each logged step."""
        values: Array = self._columns[COLUMNS.index(name)]
        return values

    def last(self, name: StepColumn) -> float | None:
        """The newest value; None where there is none, or it is no finite number."""
        if not len(self):
            return None
        value = float(self.column(name)[-1])
        return value if math.isfinite(value) else None

    @property
    def steps(self) -> Array:
        return self.column("step")

    @property
    def losses(self) -> Array:
        return self.column("loss")


class GrowingColumns:
    """Rows appended in amortized constant time; what was handed out before is never written again."""

    def __init__(self) -> None:
        self._buffer = np.empty((len(COLUMNS), 256))  # (columns, capacity)
        self._count = 0

    def array(self) -> Array:
        """What there is, of shape (columns, steps); not to be written."""
        view = self._buffer[:, : self._count]
        view.flags.writeable = False
        return view

    def series(self) -> StepSeries:
        return StepSeries(self.array())

    def last_step(self) -> float:
        return float(self._buffer[0, self._count - 1]) if self._count else 0.0

    def extend(self, rows: Array) -> None:
        needed = self._count + rows.shape[1]
        if needed > self._buffer.shape[1]:
            self._move(capacity=max(needed, 2 * self._buffer.shape[1]))
        self._buffer[:, self._count : needed] = rows
        self._count = needed

    def truncate(self, step: int) -> None:
        kept = int(np.searchsorted(self._buffer[0, : self._count], step, side="right"))
        if kept < self._count:
            self._count = kept
            self._move(capacity=self._buffer.shape[1])  # earlier series still show the rows beyond

    def _move(self, capacity: int) -> None:
        buffer = np.empty((len(COLUMNS), capacity))
        buffer[:, : self._count] = self._buffer[:, : self._count]
        self._buffer = buffer


def row_of(data: StepData, time: float) -> Array:
    values = [time if name == "time" else getattr(data, name) for name in COLUMNS]
    return np.array([[math.nan if value is None else value] for value in values], dtype=np.float64)


def looks_like_step(line: bytes) -> bool:
    return line.find(b'"kind":"step"', 0, 120) >= 0


def rows_of_plain_steps(lines: list[bytes], attempt: int) -> Array | None:
    """The lines as an array of shape (columns, lines), if each is a complete step of this attempt.

    Building a typed event for each of a million steps would take ten times as long.
    """
    try:
        parsed: list[dict[str, Any]] = [pydantic_core.from_json(line) for line in lines]
        if any(item["kind"] != "step" or item["attempt"] != attempt for item in parsed):
            return None
        steps = [item["data"] for item in parsed]
        columns = [[item["time"] for item in parsed] if name == "time" else _column(steps, name) for name in COLUMNS]
        return np.array(columns, dtype=np.float64)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # the careful way decides, line by line


def _column(steps: list[dict[str, Any]], name: StepColumn) -> list[Any]:
    if name in ("grad_norm", "memory_bytes"):
        return [math.nan if (value := step.get(name)) is None else value for step in steps]
    if name == "trained_tokens":
        return [step.get(name, 0) for step in steps]
    return [step[name] for step in steps]

"""Columns of logged steps: what was handed out stays, and what is missing is known without looking."""

import math

import numpy as np
import pytest

from engine.runs.history.events import StepData
from engine.runs.history.steps import COLUMNS, GrowingColumns, StepSeries, row_of, smooth


def a_step(step, **changes) -> StepData:
    told = {"epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 10 * step}
    return StepData(step=step, tokens_per_second=100.0, memory_bytes=2**30, **(told | changes))


@pytest.fixture
def columns() -> GrowingColumns:
    made = GrowingColumns()
    for step in range(1, 6):
        made.extend(row_of(a_step(step, grad_norm=None if step == 4 else 1.0), time=step))
    return made


def test_a_column_is_complete_until_a_value_is_missing_and_again_once_that_step_is_superseded(columns):
    series = StepSeries(columns.array())

    assert [name for name in COLUMNS if not series.is_complete(name)] == ["grad_norm"]
    columns.truncate(3)
    assert StepSeries(columns.array()).is_complete("grad_norm")
    columns.extend(row_of(a_step(4, loss=math.nan), time=4))
    assert not StepSeries(columns.array()).is_complete("loss")
    assert not series.is_complete("grad_norm")  # what was handed out before stays as it was


def test_what_was_handed_out_keeps_the_steps_that_are_superseded_later(columns):
    before = StepSeries(columns.array())

    columns.truncate(2)
    columns.extend(row_of(a_step(3, loss=9.0), time=9))

    assert before.losses.tolist() == [2.0] * 5
    assert StepSeries(columns.array()).losses.tolist() == [2.0, 2.0, 9.0]


def test_a_curve_is_continued_and_restarts_where_steps_are_superseded(columns):
    losses = [3.0, 2.5, 2.0, 1.5, 1.0]
    made = GrowingColumns()
    for step, loss in enumerate(losses, start=1):
        made.extend(row_of(a_step(step, loss=loss), time=step))
        np.testing.assert_allclose(
            StepSeries(made.array()).smoothed_losses(0.9), smooth(StepSeries(made.array()).losses, 0.9)
        )
    before = StepSeries(made.array()).smoothed_losses(0.9).copy()

    made.truncate(3)
    made.extend(row_of(a_step(4, loss=9.0), time=9))

    after = StepSeries(made.array())
    np.testing.assert_allclose(after.smoothed_losses(0.9), smooth(np.array([3.0, 2.5, 2.0, 9.0]), 0.9))
    np.testing.assert_array_equal(after.smoothed_losses(0.0), after.losses)
    assert before[3] != after.smoothed_losses(0.9)[3]


def test_a_gap_in_the_losses_is_passed_over(columns):
    columns.extend(row_of(a_step(6, loss=math.nan), time=6))

    assert np.isnan(StepSeries(columns.array()).smoothed_losses(0.9)).tolist() == [False] * 5 + [True]


def test_throughput_counts_training_alone_and_forgets_what_was_superseded():
    columns = GrowingColumns()
    columns.extend(row_of(a_step(1, tokens=100), time=1))  # 100 tokens at 100 a second
    columns.extend(row_of(a_step(2, tokens=300), time=2))
    assert StepSeries(columns.array()).throughput == (300.0, 3.0)

    columns.truncate(1)
    columns.extend(row_of(a_step(2, tokens=100), time=9))  # nothing was learned from

    assert StepSeries(columns.array()).throughput == (100.0, 1.0)

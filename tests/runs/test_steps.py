"""Columns of logged steps: what was handed out stays, and what is missing is known without looking."""

import math

import pytest

from engine.runs.history.events import StepData
from engine.runs.history.steps import COLUMNS, GrowingColumns, StepSeries, row_of


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


def test_throughput_counts_training_alone_and_forgets_what_was_superseded():
    columns = GrowingColumns()
    columns.extend(row_of(a_step(1, tokens=100), time=1))  # 100 tokens at 100 a second
    columns.extend(row_of(a_step(2, tokens=300), time=2))
    assert StepSeries(columns.array()).throughput == (300.0, 3.0)

    columns.truncate(1)
    columns.extend(row_of(a_step(2, tokens=100), time=9))  # nothing was learned from

    assert StepSeries(columns.array()).throughput == (100.0, 1.0)

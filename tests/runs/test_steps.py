"""Columns of logged steps, their smoothing, and which points of a curve are drawn."""

import math
import subprocess
import sys

import numpy as np
import pytest

from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.steps import COLUMNS, GrowingColumns, StepSeries, row_of, smooth, thin


def a_step(step, **changes) -> StepData:
    values = {"epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 10 * step}
    return StepData(step=step, tokens_per_second=100.0, memory_bytes=2**30, **(values | changes))


@pytest.fixture
def columns() -> GrowingColumns:
    columns = GrowingColumns()
    for step in range(1, 6):
        columns.extend(row_of(a_step(step, grad_norm=None if step == 4 else 1.0), time=step))
    return columns


def test_a_column_is_complete_again_once_a_step_without_a_value_is_superseded(columns):
    series = StepSeries(columns.array())

    assert [name for name in COLUMNS if not series.is_complete(name)] == ["grad_norm"]
    columns.truncate(3)
    assert StepSeries(columns.array()).is_complete("grad_norm")
    columns.extend(row_of(a_step(4, loss=math.nan), time=4))
    assert not StepSeries(columns.array()).is_complete("loss")
    assert not series.is_complete("grad_norm")  # what was handed out before stays as it was


def test_throughput_counts_training_alone_and_forgets_what_was_superseded():
    columns = GrowingColumns()
    columns.extend(row_of(a_step(1, tokens=100), time=1))  # 100 tokens at 100 a second
    columns.extend(row_of(a_step(2, tokens=300), time=2))
    assert StepSeries(columns.array()).throughput == (300.0, 3.0)

    columns.truncate(1)
    columns.extend(row_of(a_step(2, tokens=100), time=9))  # nothing was learned from

    assert StepSeries(columns.array()).throughput == (100.0, 1.0)


def test_a_short_curve_is_drawn_whole():
    y = np.array([3.0, 2.0, 1.0])
    assert thin(np.arange(3.0), y, 100).tolist() == [0, 1, 2]


def test_a_million_points_keep_their_extremes_their_start_and_the_newest():
    generator = np.random.default_rng(1)
    y = generator.normal(size=1_000_000)
    y[123_456], y[654_321] = 50.0, -50.0
    x = np.arange(1_000_000.0)

    sample = thin(x, y, 1000)

    assert len(sample) <= 1000
    assert {0, 123_456, 654_321, 999_999} <= set(sample.tolist())
    assert np.all(np.diff(sample) > 0)


def test_the_newest_point_is_there_even_when_its_loss_is_not_a_number():
    y = np.full(5000, np.nan)
    y[:4000] = 1.0
    sample = thin(np.arange(5000.0), y, 100)

    assert sample[-1] == 4999
    assert len(sample) <= 100
    assert np.all(np.isfinite(y[sample[:-1]]))


def test_nothing_is_nothing():
    empty = np.array([])
    assert thin(empty, empty, 100).tolist() == []


def test_smoothing_corrects_its_start_and_passes_over_gaps():
    values = np.array([4.0, np.nan, 2.0, 2.0])
    result = smooth(values, 0.5)

    # by hand: 4; gap; (4·.25 + 2·.5)/.75; (4·.125 + 2·.25 + 2·.5)/.875
    assert result[0] == pytest.approx(4.0)
    assert np.isnan(result[1])
    assert result[2] == pytest.approx(2 / 0.75)
    assert result[3] == pytest.approx(2.0 / 0.875)
    np.testing.assert_array_equal(smooth(values, 0.0), values)


@pytest.mark.parametrize("weight", [0.1, 0.6, 0.9, 0.99, 0.999])
def test_smoothing_is_the_plain_recurrence(weight):
    values = np.random.default_rng(2).normal(size=10_000)
    expected, average = [], 0.0
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        expected.append(average / (1 - weight**count))

    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-6, atol=1e-9)


def test_a_server_that_draws_curves_does_without_pandas():
    program = "import sys, numpy; from loratory.engine.runs.history import steps; steps.smooth(numpy.ones(3), 0.9); assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)

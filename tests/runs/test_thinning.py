import numpy as np
import pytest

from engine.runs.history.steps import smooth, thin


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
    smoothed = smooth(values, 0.5)

    # by hand: 4; gap; (4·.25 + 2·.5)/.75; (4·.125 + 2·.25 + 2·.5)/.875
    assert smoothed[0] == pytest.approx(4.0)
    assert np.isnan(smoothed[1])
    assert smoothed[2] == pytest.approx(2 / 0.75)
    assert smoothed[3] == pytest.approx(2.0 / 0.875)
    np.testing.assert_array_equal(smooth(values, 0.0), values)


@pytest.mark.parametrize("weight", [0.1, 0.6, 0.9, 0.99, 0.999])
def test_smoothing_is_the_plain_recurrence(weight):
    values = np.random.default_rng(2).normal(size=10_000)
    expected, average = [], 0.0
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        expected.append(average / (1 - weight**count))

    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-6, atol=1e-9)

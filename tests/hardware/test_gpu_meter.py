"""Utilization, power and temperature of GPUs, by drivers that are made up."""

import pytest

from loratory.engine.hardware.cuda import GpuMeter
from tests.hardware.fake_nvml import RTX_4090, FakeNvml


class Clock:
    """Time that passes at each look, and where a test says so."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 100.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def driver_with(*readings, **more):
    return FakeNvml(*(RTX_4090 for _ in readings), readings=readings, **more)


def test_of_several_gpus_the_mean_the_sum_and_the_highest_count():
    meter = GpuMeter((0, 2), driver_with((90, 300_000, 60), (1, 1, 1), (70, 250_500, 71)))

    assert meter.read() == {"gpu_utilization": 80.0, "gpu_watts": 550.5, "gpu_celsius": 71.0}


def test_what_a_gpu_does_not_report_is_left_out():
    assert GpuMeter((0,), driver_with((90, None, 60))).read() == {"gpu_utilization": 90.0, "gpu_celsius": 60.0}


@pytest.mark.parametrize("meter", [GpuMeter(), GpuMeter((0,), driver_with((1, 1, 1), driver=False))])
def test_without_gpus_or_a_driver_there_are_no_readings(meter):
    assert meter.read() == {}


@pytest.mark.parametrize(("seconds", "pause"), [(0.0001, 1.0), (0.02, 20.0)])
def test_readings_take_less_than_a_thousandth_of_the_time(seconds, pause):
    clock = Clock(tick=seconds)
    meter = GpuMeter((0,), driver_with((90, 300_000, 60)), clock)
    assert meter.read()

    clock.now += pause - 3 * seconds
    assert meter.read() == {}
    clock.now += 3 * seconds
    assert meter.read()


def test_the_driver_stays_open_between_readings():
    driver, clock = driver_with((90, 300_000, 60)), Clock()
    meter = GpuMeter((0,), driver, clock)

    opened = []
    for _ in range(3):
        assert meter.read()
        opened.append(driver.open)
        clock.now += 10

    assert opened == [1, 1, 1]

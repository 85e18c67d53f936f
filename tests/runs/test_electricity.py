"""What a run cost: measured, or from a stated power, or not said at all."""

import pytest

from loratory.engine.errors import ConfigError
from loratory.engine.hardware.cuda import energy_so_far_joules
from loratory.engine.runs.summary import RunSummary, summarize
from loratory.engine.runs.usage import Electricity, energy_of, energy_words, read_electricity, save_electricity
from tests.supervision.fake_runs import config_for, gpu, wait_for_state

KWH = 3.6e6


def summary(**values: object) -> RunSummary:
    return RunSummary.model_validate(
        {"id": "x", "owner": "ann", "name": "A run", "state": "completed", "started": 100.0, "ended": 3700.0, **values}
    )


def test_a_measured_run_costs_what_its_gpu_measured_whatever_power_was_stated():
    energy = energy_of(summary(energy_joules=0.5 * KWH), Electricity(price_per_kwh=0.4, watts=1000))

    assert energy == (0.5, pytest.approx(0.2), True)


def test_an_unmeasured_run_costs_what_the_stated_power_makes_of_its_duration():
    electricity = Electricity(price_per_kwh=0.3, currency="€", watts=250)

    assert energy_of(summary(), electricity) == (0.25, pytest.approx(0.075), False)
    assert energy_words(summary(), electricity) == "0.25 kWh, € 0.07 (at the stated 250 W)"


@pytest.mark.parametrize("run", [summary(), summary(ended=None)])
def test_nothing_is_reported_where_nothing_is_known(run):
    assert energy_words(run, Electricity(price_per_kwh=0.3)) == ""
    little = energy_words(summary(energy_joules=KWH / 1000), Electricity(price_per_kwh=0.3, currency="€"))
    assert little == "0.001 kWh, under € 0.01 (measured by the GPU)"


def test_energy_without_a_price_has_no_cost():
    assert energy_words(summary(energy_joules=KWH), Electricity()) == "1 kWh (measured by the GPU)"


def test_a_price_is_kept_in_the_home_and_a_wrong_one_is_refused(home):
    assert read_electricity(home) == Electricity()
    save_electricity(home, 0.31, " EUR ", None)
    assert read_electricity(home) == Electricity(price_per_kwh=0.31, currency="EUR")

    with pytest.raises(ConfigError) as error_info:
        save_electricity(home, -1, "€", 0)
    assert {problem.field for problem in error_info.value.problems} == {"price_per_kwh", "watts"}
    assert read_electricity(home).price_per_kwh == 0.31


class FakeNvml:
    """Two meters."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: dict[int, int]) -> None:
        self._millijoules = millijoules
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle not in self._millijoules:
            raise self.NVMLError
        return self._millijoules[handle]


def test_meters_of_all_gpus_of_a_run_are_added_and_a_missing_one_makes_it_unknown():
    meters = FakeNvml({0: 5_000, 1: 7_000})

    assert energy_so_far_joules("cuda:0, cuda:1", meters) == 12.0
    assert energy_so_far_joules("cuda:1", meters) == 7.0
    assert energy_so_far_joules("cuda:0, cuda:2", meters) is None
    assert energy_so_far_joules("cpu", meters) is None
    assert meters.open == 0


@pytest.mark.parametrize(("readings", "joules"), [([1000.0, 1750.0], 750.0), ([1000.0, 20.0], None), ([None], None)])
def test_the_supervisor_takes_the_difference_of_two_readings(store, start_supervisor, readings, joules):
    left = list(readings)
    run = store.create(config_for("steps=2"))
    start_supervisor(devices=lambda: (gpu(0),), meter=lambda _: left.pop(0))
    wait_for_state(run, "completed")

    assert summarize(run).energy_joules == joules

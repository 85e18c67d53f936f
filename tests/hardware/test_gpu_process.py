"""What a GPU's driver counts for this process, by drivers that are made up."""

import os

import psutil
import pytest

from loratory.engine.hardware.cuda import GpuProgram, gpu_process_bytes, list_gpu_programs
from tests.hardware.fake_nvml import RTX_4090, FakeNvml, Instance

OURS = os.getpid()


def driver_with(*processes):
    """Return a driver with processes as (GPU, pid, bytes); without any, it does not list them."""
    return FakeNvml(RTX_4090, RTX_4090, processes=processes or None)


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (driver_with((0, OURS, 700), (0, 1, 900)), 700),
        (driver_with((1, OURS, 700)), None),  # on another GPU
        (driver_with((0, 1, 900)), 900),  # alone there, by a number of the host
        (driver_with((0, 1, 900), (0, 2, 800)), None),  # which of them, no one knows
        (driver_with((0, OURS, None)), None),  # Windows tells no one
        (driver_with(), None),
        (FakeNvml(RTX_4090, driver=False), None),
    ],
)
def test_only_what_is_surely_ours_is_reported(driver, expected):
    assert gpu_process_bytes(0, driver) == expected
    assert driver.open == 0


def test_a_mig_instance_is_asked_by_its_own_handle():
    instances = {1: {2: Instance(10, 9)}}
    driver = FakeNvml(RTX_4090, RTX_4090, instances=instances, processes=[((1, 2), OURS, 700), (1, OURS, 900)])

    assert gpu_process_bytes(202, driver) == 700


def test_programs_of_other_people_are_listed_with_their_user():
    unseen = 2**22 + 1  # above the highest pid: of another container
    driver, user = driver_with((0, OURS, 5_000), (0, unseen, None), (1, OURS, 7)), psutil.Process().username()

    assert list_gpu_programs(0, driver) == (GpuProgram(OURS, user, 5_000), GpuProgram(unseen, "", None))
    assert list_gpu_programs(0, driver_with()) == ()
    assert driver.open == 0

"""What a GPU's driver counts for this process, by drivers that are made up."""

import getpass
import os
from types import SimpleNamespace

import pytest

from engine.hardware.cuda import GpuProgram, gpu_process_bytes, list_gpu_programs


class Driver:
    """NVML with some processes on each GPU."""

    NVMLError = RuntimeError

    def __init__(self, *processes, refuses=False):
        self.processes, self.refuses, self.open = processes, refuses, 0

    def nvmlInit(self):  # noqa: N802
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, number):  # noqa: N802
        return (gpu, number)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        if self.refuses:
            raise self.NVMLError("not supported")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for gpu, pid, used in self.processes if gpu == handle]


OURS = os.getpid()


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (Driver((0, OURS, 700), (0, 1, 900)), 700),
        (Driver((1, OURS, 700)), None),  # on another GPU
        (Driver((0, 1, 900)), 900),  # alone there, by a number of the host
        (Driver((0, 1, 900), (0, 2, 800)), None),  # which of them, no one knows
        (Driver((0, OURS, None)), None),  # Windows tells no one
        (Driver(refuses=True), None),
    ],
)
def test_only_what_is_surely_ours_is_reported(driver, expected):
    assert gpu_process_bytes(0, driver) == expected
    assert driver.open == 0


def test_without_a_driver_nothing_is_reported():
    class Absent(Driver):
        def nvmlInit(self):  # noqa: N802
            raise self.NVMLError("no driver")

    assert gpu_process_bytes(0, Absent()) is None


def test_a_mig_instance_is_asked_by_its_own_handle():
    driver = Driver(((1, 2), OURS, 700), (1, OURS, 900))

    assert gpu_process_bytes(202, driver) == 700


def test_programs_of_other_people_are_listed_with_their_user():
    unseen = 2**22 + 1  # above the highest pid: of another container
    driver = Driver((0, OURS, 5_000), (0, unseen, None), (1, OURS, 7))

    assert list_gpu_programs(0, driver) == (GpuProgram(OURS, getpass.getuser(), 5_000), GpuProgram(unseen, "", None))
    assert list_gpu_programs(0, Driver(refuses=True)) == ()
    assert driver.open == 0

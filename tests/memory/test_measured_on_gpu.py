"""The check of a GPU's memory fails where it must, on figures that are made up."""

import pytest

from engine.config.run import AdapterConfig
from engine.hardware.device import Device
from engine.memory.device_need import TensorsAtPeak, need_on_device
from engine.memory.workload import Workload
from engine.runs.history.events import MemoryData
from tests.memory.measured_on_gpu import assert_predicted

MIB = 2**20
GPU = Device("cuda", 0, "NVIDIA A10", 22 * 2**30, 22 * 2**30, has_fast_bfloat16=True)
TENSORS = TensorsAtPeak(
    allocated_bytes=1000 * MIB, passing_bytes=0, layer_bytes=0, paged_bytes=0, loading_bytes=0, uncertain_bytes=0
)
NEED = need_on_device(TENSORS, Workload(AdapterConfig(), 1, 8), GPU)


def measured(allocated=1000, reserved=1040, process=1400):
    return MemoryData(
        peak_allocated_bytes=allocated * MIB,
        peak_reserved_bytes=reserved * MIB,
        peak_process_bytes=1,
        peak_device_process_bytes=None if process is None else process * MIB,
    )


@pytest.mark.parametrize("changes", [{}, {"allocated": 950}, {"allocated": 1060, "reserved": 1090}, {"process": None}])
def test_what_was_predicted_passes(changes):
    assert_predicted(NEED, measured(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"allocated": 930},  # eight percent too high
        {"allocated": 1070, "reserved": 1090},  # seven too low
        {"reserved": 1200},  # within what the process needs with its context, and beyond what the allocator does
        {"process": 2000},
    ],
)
def test_what_was_not_predicted_fails(changes):
    with pytest.raises(AssertionError):
        assert_predicted(NEED, measured(**changes))
    assert NEED.needed_bytes > 1500 * MIB

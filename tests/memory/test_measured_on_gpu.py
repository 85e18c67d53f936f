"""The check of a GPU's memory fails where it must, on figures that are made up."""

import pytest

from engine.config.run import AdapterConfig
from engine.hardware.device import Device
from engine.memory.device_need import TensorsAtPeak, need_on_device
from engine.memory.workload import Workload
from engine.runs.history.events import MemoryData

WITHIN = 0.06  # of the tensors that were measured
MIB = 2**20
GPU = Device("cuda", 0, "NVIDIA A10", 22 * 2**30, 22 * 2**30, has_fast_bfloat16=True)
TENSORS = TensorsAtPeak(
    allocated_bytes=1000 * MIB, passing_bytes=0, layer_bytes=0, paged_bytes=0, loading_bytes=0, uncertain_bytes=0
)
NEED = need_on_device(TENSORS, Workload(AdapterConfig(), 1, 8), GPU)


def assert_predicted(need, memory):
    """Tensors within six percent; what PyTorch held, and the process, below their bounds.

    Args:
        need: `engine.memory.device_need.DeviceNeed` of the run.
        memory: `engine.runs.history.events.MemoryData`, the run's last.
    """
    error = need.allocated_bytes / memory.peak_allocated_bytes - 1
    assert abs(error) <= WITHIN, f"tensors: {error:+.1%}"
    # Without the context and the margin of the process, which PyTorch's allocator does not hold.
    assert memory.peak_reserved_bytes <= need.reserved_bound_bytes, "PyTorch held more than its bound"
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes
    if memory.peak_device_process_bytes is not None:  # a driver within a container may not tell
        assert memory.peak_reserved_bytes < memory.peak_device_process_bytes <= need.needed_bytes, "the process"


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

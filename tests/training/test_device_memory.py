"""Memory as each kind of device counts it, on counters that are made up."""

from types import SimpleNamespace

import psutil
import torch

from engine.hardware.device import Device
from engine.training.device_memory import DeviceMemory
from engine.training.placement import Placement

GPU = Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, supports_bfloat16=True)


def counters(**bytes_by_device):
    return SimpleNamespace(
        **{name: lambda index, values=values: values[index] for name, values in bytes_by_device.items()}
    )


def test_of_several_gpus_the_fullest_counts():
    cuda = counters(memory_allocated=[5, 7], max_memory_allocated=[9, 8], max_memory_reserved=[10, 30])

    memory = DeviceMemory("cuda", (0, 1), cuda)

    assert (memory.now_bytes(), memory.peak_allocated_bytes(), memory.peak_reserved_bytes()) == (7, 9, 30)
    assert DeviceMemory("cuda", (1,), cuda).peak_allocated_bytes() == 8


def test_apples_peak_is_the_highest_that_was_seen():
    held = iter([10, 40, 20, 30])
    mps = SimpleNamespace(driver_allocated_memory=lambda: next(held), current_allocated_memory=lambda: 4)
    memory = DeviceMemory("mps", (), mps)

    assert [memory.now_bytes() for _ in range(3)] == [4, 4, 4]
    assert memory.peak_reserved_bytes() == 40
    assert memory.peak_allocated_bytes() is None


def test_on_a_processor_the_process_counts():
    memory = DeviceMemory.of(Placement(GPU, torch.device("cpu")))

    assert memory.peak_reserved_bytes() is None
    assert memory.peak_allocated_bytes() is None
    assert abs(memory.now_bytes() - psutil.Process().memory_info().rss) < 2**26


def test_the_counters_are_those_of_where_a_run_trains():
    assert DeviceMemory.of(Placement(GPU, torch.device("cuda", 1))).indexes == (1,)
    spread = DeviceMemory.of(Placement(GPU, torch.device("cuda", 0), spread=(GPU, GPU)))
    assert (spread.kind, spread.indexes, spread.backend) == ("cuda", (0, 1), torch.cuda)
    assert DeviceMemory.of(Placement(GPU, torch.device("mps"))).backend is torch.mps

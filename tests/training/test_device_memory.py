"""Memory as each kind of device counts it, on counters that are made up."""

from dataclasses import replace
from types import SimpleNamespace

import psutil
import torch

from engine.hardware.device import Device
from engine.training.placement import Placement
from engine.training.reporting import DeviceMemory

GPU = Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, has_fast_bfloat16=True)


class Cuda:
    """torch.cuda's counters: peaks that are set back to what is held now."""

    def __init__(self, allocated, reserved):
        self.allocated, self.reserved = list(allocated), list(reserved)
        self.most_allocated, self.most_reserved = list(allocated), list(reserved)

    def take(self, index, allocated, reserved):
        self.allocated[index], self.reserved[index] = allocated, reserved
        self.most_allocated[index] = max(self.most_allocated[index], allocated)
        self.most_reserved[index] = max(self.most_reserved[index], reserved)

    def max_memory_allocated(self, index):
        return self.most_allocated[index]

    def max_memory_reserved(self, index):
        return self.most_reserved[index]

    def memory_reserved(self, index):
        return self.reserved[index]

    def reset_peak_memory_stats(self, index):
        self.most_allocated[index], self.most_reserved[index] = self.allocated[index], self.reserved[index]


def test_of_several_gpus_the_fullest_counts():
    cuda = Cuda(allocated=[9, 8], reserved=[10, 30])

    memory = DeviceMemory("cuda", (0, 1), cuda)

    assert (memory.step_bytes(), memory.peak_allocated_bytes(), memory.peak_reserved_bytes()) == (9, 9, 30)
    assert DeviceMemory("cuda", (1,), cuda).peak_allocated_bytes() == 8


def test_each_step_tells_its_own_peak_and_the_highest_of_all_is_kept():
    cuda = Cuda(allocated=[5], reserved=[6])
    memory = DeviceMemory("cuda", (0,), cuda)

    records = []
    for most in (40, 20):
        cuda.take(0, most, most + 2)
        cuda.take(0, 5, 6)
        records.append(memory.step_bytes())

    assert records == [40, 20]
    assert (memory.peak_allocated_bytes(), memory.peak_reserved_bytes()) == (40, 42)


def test_the_process_is_what_the_driver_counts_outside_of_the_allocator_and_its_peak():
    cuda = Cuda(allocated=[5], reserved=[6])
    requests = []

    def driver(index):
        requests.append(index)
        return 6 + 300

    memory = DeviceMemory("cuda", (0,), cuda, driver_indexes=(3,), ask_driver=driver)
    cuda.take(0, 40, 42)
    cuda.take(0, 5, 6)

    assert memory.peak_process_bytes() == 300 + 42
    assert requests == [3]
    assert DeviceMemory("cuda", (0,), cuda, (3,), lambda _: None).peak_process_bytes() is None


def test_apples_peak_is_the_highest_that_was_seen():
    held = iter([10, 40, 20, 30])
    mps = SimpleNamespace(driver_allocated_memory=lambda: next(held), current_allocated_memory=lambda: 4)
    memory = DeviceMemory("mps", (), mps)

    assert [memory.step_bytes() for _ in range(3)] == [4, 4, 4]
    assert memory.peak_reserved_bytes() == 40
    assert memory.peak_allocated_bytes() is None


def test_on_a_processor_the_process_counts(monkeypatch):
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=1234))
    memory = DeviceMemory.of(Placement(GPU, torch.device("cpu")))

    assert memory.peak_reserved_bytes() is None
    assert memory.peak_allocated_bytes() is None
    assert memory.peak_process_bytes() is None
    assert memory.step_bytes() == 1234


def test_the_counters_are_those_of_where_a_run_trains():
    assert DeviceMemory.of(Placement(GPU, torch.device("cuda", 1))).indexes == (1,)
    second = replace(GPU, index=5)
    spread = DeviceMemory.of(Placement(GPU, torch.device("cuda", 0), spread=(GPU, second)))
    assert spread.driver_indexes == (0, 5)
    assert (spread.kind, spread.indexes, spread.backend) == ("cuda", (0, 1), torch.cuda)
    assert DeviceMemory.of(Placement(GPU, torch.device("mps"))).backend is torch.mps

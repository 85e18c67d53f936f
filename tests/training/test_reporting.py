"""A full disk pauses the run's events and checkpoints; nothing is lost, and requests to end are obeyed."""

import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from loratory.engine.errors import StorageError
from loratory.engine.hardware import cuda
from loratory.engine.hardware.cuda import GpuMeter
from loratory.engine.hardware.device import Device
from loratory.engine.runs.history.events import StatusData, StepData
from loratory.engine.runs.history.log import EventWriter, read_events
from loratory.engine.training import reporting
from loratory.engine.training.failure import CancelledError, explain
from loratory.engine.training.placement import Placement
from loratory.engine.training.reporting import DeviceMemory, RunEvents
from tests.hardware.fake_nvml import RTX_4090, FakeNvml


class Requests:
    """Requests to stop or cancel after a number of checks."""

    def __init__(self, stop_after=None, cancel_after=None):
        self.checks = 0
        self.at_check = {}  # what happens meanwhile
        self.stop_after = stop_after
        self.cancel_after = cancel_after

    def check_cancel(self):
        self.checks += 1
        self.at_check.get(self.checks, lambda: None)()
        if self.cancel_after is not None and self.checks > self.cancel_after:
            raise CancelledError

    def stop_wanted(self):
        return self.stop_after is not None and self.checks > self.stop_after


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reporting, "_RETRY_SECONDS", 0.01)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def writer(log):
    with EventWriter(log, 1) as writer:
        yield writer


def messages_of(log):
    return [event.data for event in read_events(log).events]


def full_for(tries):
    """Something to write that the disk has no room for, so many times."""
    left = iter(range(tries))

    def write():
        if next(left, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")

    return write


def full_for_ever():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_pause_is_reported_once_and_so_is_its_end(writer, log, tmp_path):
    RunEvents(writer, tmp_path, Requests()).when_there_is_room(full_for(5))

    assert [data.code for data in messages_of(log)] == ["disk_full", "disk_has_room"]


class KernelsFullDisk:
    """Lets the log's descriptor lead to /dev/full, where the kernel refuses every byte."""

    def __init__(self, writer):
        self.descriptor = writer._descriptor
        self.log = os.dup(self.descriptor)
        self.swap("/dev/full")

    def swap(self, path):
        full = os.open(path, os.O_RDWR)
        os.dup2(full, self.descriptor)
        os.close(full)

    def end(self):
        os.dup2(self.log, self.descriptor)
        os.close(self.log)


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")


@needs_dev_full
def test_the_end_of_a_pause_may_meet_a_full_disk(writer, log, tmp_path):
    events = RunEvents(writer, tmp_path, Requests())
    disk = []
    tries = full_for(2)

    def write():
        tries()
        disk.append(KernelsFullDisk(writer))  # full again as soon as this was written

    events.when_there_is_room(write)

    assert [data.code for data in messages_of(log)] == ["disk_full"]
    disk[0].end()
    events.status("training", "It continues.")
    assert messages_of(log)[-1] == StatusData(phase="training", message="It continues.")


@needs_dev_full
def test_an_event_that_the_kernel_has_no_room_for_comes_later_and_once(writer, log, tmp_path):
    requests = Requests()
    events = RunEvents(writer, tmp_path, requests)
    events.status("preparing", "Before.")
    disk = KernelsFullDisk(writer)
    requests.at_check = {3: disk.end}

    events.status("training", "Meanwhile.")

    assert requests.checks >= 3
    assert [data.message for data in messages_of(log) if isinstance(data, StatusData)] == ["Before.", "Meanwhile."]
    assert [event.seq for event in read_events(log).events] == list(range(1, len(messages_of(log)) + 1))


def test_a_pause_ends_on_cancel(writer, tmp_path):
    with pytest.raises(CancelledError):
        RunEvents(writer, tmp_path, Requests(cancel_after=3)).when_there_is_room(full_for_ever)


def test_a_run_that_shall_stop_does_not_wait_for_ever(writer, log, tmp_path):
    events = RunEvents(writer, tmp_path, Requests(stop_after=3), stop_timeout_seconds=0.05)

    with pytest.raises(OSError, match="No space") as error_info:
        events.when_there_is_room(full_for_ever)

    failure = explain(error_info.value, None)
    assert failure.cause == "disk_full"
    assert "earlier checkpoints are intact" in failure.fix


def test_a_run_that_shall_stop_still_saves_where_there_is_room_soon(writer, log, tmp_path):
    events = RunEvents(writer, tmp_path, Requests(stop_after=1), stop_timeout_seconds=math.inf)

    events.when_there_is_room(full_for(8))

    assert [data.code for data in messages_of(log)] == ["disk_full", "disk_has_room"]


def test_what_fails_for_another_reason_is_not_waited_for(writer, tmp_path):
    def fail():
        raise StorageError("The folder is gone.", "Look for it.")

    with pytest.raises(StorageError, match="gone"):
        RunEvents(writer, tmp_path, Requests()).when_there_is_room(fail)


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


def test_each_step_reports_its_own_peak_and_the_highest_is_kept():
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

    memory = DeviceMemory("cuda", (0,), cuda, driver_indexes=(3,), process_bytes=driver)
    cuda.take(0, 40, 42)
    cuda.take(0, 5, 6)

    assert memory.peak_process_bytes() == 300 + 42
    assert requests == [3]
    assert DeviceMemory("cuda", (0,), cuda, (3,), lambda _: None).peak_process_bytes() is None


def test_apples_peak_is_the_highest_that_was_seen():
    readings = iter([10, 40, 20, 30])
    mps = SimpleNamespace(driver_allocated_memory=lambda: next(readings), current_allocated_memory=lambda: 4)
    memory = DeviceMemory("mps", (), mps)

    assert [memory.step_bytes() for _ in range(3)] == [4, 4, 4]
    assert memory.peak_reserved_bytes() == 40
    assert memory.peak_allocated_bytes() is None


def test_on_a_processor_the_process_counts(monkeypatch):
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=1234))
    memory = DeviceMemory.from_placement(Placement(GPU, torch.device("cpu")))

    assert memory.peak_reserved_bytes() is None
    assert memory.peak_allocated_bytes() is None
    assert memory.peak_process_bytes() is None
    assert memory.step_bytes() == 1234


def test_the_counters_are_those_of_where_a_run_trains():
    assert DeviceMemory.from_placement(Placement(GPU, torch.device("cuda", 1))).indexes == (1,)
    second = replace(GPU, index=5)
    split = DeviceMemory.from_placement(Placement(GPU, torch.device("cuda", 0), layer_devices=(GPU, second)))
    assert split.driver_indexes == (0, 5)
    assert (split.kind, split.indexes, split.backend) == ("cuda", (0, 1), torch.cuda)
    assert DeviceMemory.from_placement(Placement(GPU, torch.device("mps"))).backend is torch.mps


def test_a_step_has_the_readings_of_its_gpus_when_they_are_due(writer, log, tmp_path):
    events = RunEvents(writer, tmp_path, Requests())
    driver = FakeNvml(RTX_4090, readings=[(90, 300_000, 60)])
    events.device_memory = DeviceMemory("cuda", (0,), Cuda(allocated=[5], reserved=[6]), meter=GpuMeter((0,), driver))
    step = StepData(step=1, epoch=0.1, loss=1.0, learning_rate=1e-4, tokens=9, tokens_per_second=1.0)

    events.step(step)
    events.step(step.model_copy(update={"step": 2}))

    readings = [data.gpu for data in messages_of(log)]
    assert readings == [{"gpu_utilization": 90.0, "gpu_watts": 300.0, "gpu_celsius": 60.0}, {}]


def test_gpus_are_read_where_a_run_trains_on_them(monkeypatch):
    monkeypatch.setattr(cuda, "load_nvml", lambda: FakeNvml(RTX_4090, readings=[(90, 300_000, 60)]))

    on_gpu, on_processor = (
        DeviceMemory.from_placement(Placement(GPU, torch.device(*where))) for where in (("cuda", 0), ("cpu",))
    )

    assert on_gpu.meter.read()["gpu_watts"] == 300.0
    assert on_processor.meter.read() == {}

"""Which devices there are, and which one a run gets."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine.config.run import RunSection
from engine.errors import DeviceError
from engine.hardware.cuda import list_cuda_devices
from engine.hardware.device import Device, MemoryNow, visible_only
from engine.hardware.devices import choose_from, list_devices

GIB = 1024**3
RAM = MemoryNow(64 * GIB, 50 * GIB)


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """A driver with the given cards: (name, compute capability, total GiB, free GiB); memory None is not told."""

    NVMLError = FakeNvmlError

    def __init__(self, *cards, driver=True):
        self.cards = cards
        self.driver = driver
        self.open = 0

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise FakeNvmlError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if self.cards[index] is None:
            raise FakeNvmlError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.cards[handle][0]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return f"GPU-{handle}a5e-77"

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return self.cards[handle][1]

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        total, free = self.cards[handle][2:]
        if total is None:
            raise FakeNvmlError("not supported")
        return SimpleNamespace(total=total * GIB, free=free * GIB, used=(total - free) * GIB)


@pytest.fixture(autouse=True)
def all_gpus_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9), 24, 21)
T4 = (b"Tesla T4", (7, 5), 16, 15)


def gpu(index, free_gib, total_gib=24):
    return Device("cuda", index, f"GPU {index}", total_gib * GIB, free_gib * GIB, True)


PROCESSOR = Device("cpu", 0, "CPU", 64 * GIB, 50 * GIB, False, cores=8)


def test_gpus_are_described_as_the_driver_tells():
    nvml = FakeNvml(RTX_4090, T4)

    assert list_cuda_devices(nvml, RAM) == (
        Device("cuda", 0, "GeForce RTX 4090", 24 * GIB, 21 * GIB, has_fast_bfloat16=True),
        Device("cuda", 1, "Tesla T4", 16 * GIB, 15 * GIB, has_fast_bfloat16=False),
    )
    assert nvml.open == 0


def test_no_driver_or_no_binding_means_no_gpus():
    assert list_cuda_devices(FakeNvml(RTX_4090, driver=False), RAM) == ()
    assert list_cuda_devices(None, RAM) == ()


def test_a_lost_gpu_does_not_hide_the_others():
    nvml = FakeNvml(None, RTX_4090)

    assert [device.index for device in list_cuda_devices(nvml, RAM)] == [1]
    assert nvml.open == 0


def test_a_gpu_that_shares_the_processors_memory_has_its_size():
    (device,) = list_cuda_devices(FakeNvml(("NVIDIA GB10", (12, 1), None, None)), RAM)

    assert (device.total_bytes, device.free_bytes) == (RAM.total_bytes, RAM.free_bytes)
    assert device.has_fast_bfloat16


@pytest.mark.parametrize(
    ("setting", "indexes"), [("1", [1]), ("0, 1", [0, 1]), ("", []), ("-1", []), ("GPU-1a5e", [1]), ("10", [])]
)
def test_gpus_hidden_by_the_environment_are_not_offered(monkeypatch, setting, indexes):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)

    assert [device.index for device in list_cuda_devices(FakeNvml(RTX_4090, T4), RAM)] == indexes


def test_auto_takes_the_first_free_gpu():
    devices = (gpu(0, free_gib=3), gpu(1, free_gib=20), gpu(2, free_gib=24), PROCESSOR)

    assert choose_from(devices, RunSection()) == (devices[1],)


def test_auto_takes_the_emptiest_gpu_when_all_are_busy():
    devices = (gpu(0, free_gib=3), gpu(1, free_gib=9), PROCESSOR)

    assert choose_from(devices, RunSection()) == (devices[1],)


def test_auto_takes_the_processor_where_there_is_no_gpu():
    assert choose_from((PROCESSOR,), RunSection()) == (PROCESSOR,)


def test_cpu_never_takes_a_gpu():
    assert choose_from((gpu(0, free_gib=24), PROCESSOR), RunSection(devices="cpu")) == (PROCESSOR,)


def test_named_gpus_are_taken_in_the_order_given():
    devices = (gpu(0, free_gib=24), gpu(3, free_gib=1), PROCESSOR)

    assert [device.index for device in choose_from(devices, RunSection(devices=(3, 0)))] == [3, 0]


def test_a_gpu_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DeviceError) as caught:
        choose_from((gpu(0, free_gib=24), PROCESSOR), RunSection(devices=(0, 2)))

    assert "no CUDA device 2" in caught.value.what
    assert "0 (GPU 0)" in caught.value.what


def test_naming_a_gpu_twice_or_none_is_refused():
    devices = (gpu(0, free_gib=24), PROCESSOR)
    for wanted in ((0, 0), ()):
        with pytest.raises(DeviceError):
            choose_from(devices, RunSection(devices=wanted))


def test_a_worker_sees_only_its_devices_and_counts_them_as_nvml_does():
    assert visible_only((gpu(3, free_gib=1), gpu(0, free_gib=1))) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "3,0",
    }
    assert visible_only((PROCESSOR,))["CUDA_VISIBLE_DEVICES"] == ""


def test_the_processor_is_always_listed_last():
    assert list_devices()[-1].kind == "cpu"


def test_listing_devices_loads_no_torch():
    code = (
        "import sys; from engine.hardware.devices import list_devices; list_devices();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Apple's GPU, on systems that are made up: listed on Macs with Apple's own chip and nowhere else."""

import platform

import pytest

from loratory.engine.config.run import RunSection
from loratory.engine.errors import DeviceError
from loratory.engine.hardware import processor
from loratory.engine.hardware.cuda import energy_so_far_joules
from loratory.engine.hardware.device import Device, MemoryNow, visible_only
from loratory.engine.hardware.devices import device_options, list_devices
from loratory.engine.hardware.lease import device_words, lease_name
from loratory.engine.hardware.processor import list_apple_gpus

GIB = 1024**3
RAM = MemoryNow(32 * GIB, 20 * GIB)
PROCESSOR = Device("cpu", 0, "CPU", 32 * GIB, 20 * GIB, False, cores=8)


@pytest.fixture(autouse=True)
def mac(monkeypatch):
    """Let this machine be a Mac; returns what makes it another one."""

    def become(system: str = "Darwin", machine: str = "arm64", macos: str = "14.5") -> None:
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(platform, "mac_ver", lambda: (macos, ("", "", ""), machine))

    become()
    monkeypatch.setattr(processor, "_chip", lambda: "Apple M2 Pro")
    return become


def test_it_shares_the_memory_of_the_processor():
    assert list_apple_gpus(RAM) == (Device("mps", 0, "Apple M2 Pro GPU", 32 * GIB, 20 * GIB, has_fast_bfloat16=True),)


def test_it_may_take_what_metal_advises_where_that_is_known():
    (gpu,) = list_apple_gpus(RAM, recommended_bytes=18 * GIB)

    assert (gpu.total_bytes, gpu.free_bytes) == (18 * GIB, 18 * GIB)
    assert list_apple_gpus(RAM, recommended_bytes=0)[0].total_bytes == 32 * GIB


@pytest.mark.parametrize(("macos", "has_it"), [("13.6.1", False), ("14", True), ("26.0", True), ("", False)])
def test_bfloat16_comes_with_macos_14(mac, macos, has_it):
    mac(macos=macos)
    (gpu,) = list_apple_gpus(RAM)

    assert gpu.has_fast_bfloat16 is has_it


@pytest.mark.parametrize(("system", "machine"), [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_there_is_none_elsewhere(mac, system, machine):
    mac(system, machine)

    assert list_apple_gpus(RAM) == ()


def test_it_is_listed_before_the_processor():
    assert [device.kind for device in list_devices()][-2:] == ["mps", "cpu"]


def test_auto_takes_it_and_cpu_does_not():
    (gpu,) = list_apple_gpus(RAM)

    assert device_options((gpu, PROCESSOR), RunSection())[0] == (gpu,)
    assert device_options((gpu, PROCESSOR), RunSection(devices="cpu"))[0] == (PROCESSOR,)
    with pytest.raises(DeviceError, match="no CUDA device 0"):
        device_options((gpu, PROCESSOR), RunSection(devices=(0,)))[0]


def test_it_has_a_lease_of_its_own_and_a_name():
    (gpu,) = list_apple_gpus(RAM)

    assert lease_name(gpu) == gpu.torch_name == "mps"
    assert device_words("mps") == "Apple's GPU"
    assert visible_only((gpu,))["CUDA_VISIBLE_DEVICES"] == ""
    assert energy_so_far_joules("mps", nvml=None) is None

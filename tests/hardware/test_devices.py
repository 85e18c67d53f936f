"""Which devices there are, and which one a run gets."""

from dataclasses import replace

import pytest

from loratory.engine.config.run import RunSection
from loratory.engine.errors import DeviceError
from loratory.engine.hardware.cuda import list_cuda_devices
from loratory.engine.hardware.device import Device, MemoryNow, Obstacle, visible_only
from loratory.engine.hardware.devices import device_options, list_devices
from tests.hardware.fake_nvml import GIB, RTX_4090, T4, FakeNvml, Instance

RAM = MemoryNow(64 * GIB, 50 * GIB)
A100 = ("NVIDIA A100-SXM4-40GB", (8, 0), 40, 39)
INSTANCES = {0: {0: Instance(5, 4), 2: Instance(10, 9)}}  # of the first GPU; number 1 is not made


@pytest.fixture(autouse=True)
def all_gpus_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpu(index, free_gib, total_gib=24):
    return Device("cuda", index, f"GPU {index}", total_gib * GIB, free_gib * GIB, True)


PROCESSOR = Device("cpu", -1, "CPU", 64 * GIB, 50 * GIB, False, cores=8)


def test_gpus_are_described_as_the_driver_tells():
    nvml = FakeNvml(RTX_4090, T4)

    assert list_cuda_devices(nvml, RAM) == (
        Device("cuda", 0, "GeForce RTX 4090", 24 * GIB, 21 * GIB, True, capability=(8, 9), uuid="GPU-0a5e-77"),
        Device("cuda", 1, "Tesla T4", 16 * GIB, 15 * GIB, False, capability=(7, 5), uuid="GPU-1a5e-77"),
    )
    assert nvml.open == 0


def test_no_driver_means_no_gpus():
    assert list_cuda_devices(FakeNvml(RTX_4090, driver=False), RAM) == ()


def test_a_lost_gpu_does_not_hide_the_others():
    nvml = FakeNvml(None, RTX_4090)

    assert [device.index for device in list_cuda_devices(nvml, RAM)] == [1]
    assert nvml.open == 0


def test_a_gpu_that_shares_the_processors_memory_has_its_size():
    (device,) = list_cuda_devices(FakeNvml(("NVIDIA GB10", (12, 1), None, None)), RAM)

    assert (device.total_bytes, device.free_bytes) == (RAM.total_bytes, RAM.free_bytes)
    assert device.has_fast_bfloat16


def test_a_gpu_whose_memory_cannot_be_read_is_not_given_that_of_the_machine():
    nvml = FakeNvml(("NVIDIA A100", (8, 0), "?", "?"), RTX_4090)

    assert [device.index for device in list_cuda_devices(nvml, RAM)] == [1]


@pytest.mark.parametrize(
    ("setting", "indexes"),
    [("1", [1]), ("0, 1", [0, 1]), ("", []), ("-1", []), ("GPU-1a5e", [1]), ("10", []), ("0,-1,1", [0]), ("7,1", [])],
)
def test_gpus_hidden_by_the_environment_are_not_offered(monkeypatch, setting, indexes):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)

    assert [device.index for device in list_cuda_devices(FakeNvml(RTX_4090, T4), RAM)] == indexes


def test_a_gpu_in_mig_mode_is_listed_as_its_instances_with_their_own_memory():
    nvml = FakeNvml(A100, RTX_4090, instances=INSTANCES)

    assert [
        (device.index, device.name, device.total_bytes, device.free_bytes) for device in list_cuda_devices(nvml, RAM)
    ] == [
        (100, "A100-SXM4-40GB MIG 5gb", 5 * GIB, 4 * GIB),
        (102, "A100-SXM4-40GB MIG 10gb", 10 * GIB, 9 * GIB),
        (1, "GeForce RTX 4090", 24 * GIB, 21 * GIB),
    ]
    assert list_cuda_devices(FakeNvml(A100, instances={0: {}}), RAM) == ()  # in MIG mode, and nothing cut from it yet


@pytest.mark.parametrize(
    ("setting", "indexes"),
    [("MIG-0-2", [102]), ("MIG-0-", [100, 102]), ("0", [100, 102]), ("GPU-0a5e", [100, 102]), ("1", [1])],
)
def test_mig_instances_may_be_named_by_the_environment(monkeypatch, setting, indexes):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)

    result = list_cuda_devices(FakeNvml(A100, RTX_4090, instances=INSTANCES), RAM)
    assert [device.index for device in result] == indexes


def test_a_mig_instance_next_to_another_device_is_refused():
    devices = (*list_cuda_devices(FakeNvml(A100, RTX_4090, instances=INSTANCES), RAM), PROCESSOR)

    with pytest.raises(DeviceError, match="MIG"):
        device_options(devices, RunSection(devices=(100, 1)))[0]
    assert device_options(devices, RunSection(devices=(102,)))[0][0].total_bytes == 10 * GIB


def test_auto_passes_over_what_pytorch_cannot_use_and_naming_it_is_refused():
    without_kernels = replace(gpu(0, free_gib=24), obstacle=Obstacle("It has no kernels.", "Install others."))

    assert device_options((without_kernels, gpu(1, free_gib=3), PROCESSOR), RunSection())[0][0].index == 1
    assert device_options((without_kernels, PROCESSOR), RunSection())[0] == (PROCESSOR,)
    with pytest.raises(DeviceError, match="no kernels"):
        device_options((without_kernels, PROCESSOR), RunSection(devices=(0,)))[0]


@pytest.mark.parametrize(
    ("setting", "free_gib", "expected"),
    [
        ("auto", (3, 20, 24), [1]),  # the first that is free
        ("auto", (3, 9), [1]),  # the emptiest
        ("auto", (), [PROCESSOR.index]),
        ("cpu", (24,), [PROCESSOR.index]),
        ((2, 0), (24, 24, 1), [2, 0]),  # in the order given
    ],
)
def test_a_run_gets_the_devices_that_its_setting_means(setting, free_gib, expected):
    gpus = [gpu(index, free_gib=free) for index, free in enumerate(free_gib)]

    options = device_options((*gpus, PROCESSOR), RunSection(devices=setting))

    assert [device.index for device in options[0]] == expected


def test_a_gpu_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DeviceError) as error_info:
        device_options((gpu(0, free_gib=24), PROCESSOR), RunSection(devices=(0, 2)))[0]

    assert "no CUDA device 2" in error_info.value.what
    assert "0 (GPU 0)" in error_info.value.what


def test_naming_a_gpu_twice_or_none_is_refused():
    devices = (gpu(0, free_gib=24), PROCESSOR)
    for indexes in ((0, 0), ()):
        with pytest.raises(DeviceError):
            device_options(devices, RunSection(devices=indexes))[0]


def test_a_worker_sees_only_its_devices_and_counts_them_as_nvml_does():
    assert visible_only((gpu(3, free_gib=1), gpu(0, free_gib=1))) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "3,0",
    }
    instance, *_ = list_cuda_devices(FakeNvml(A100, instances=INSTANCES), RAM)
    assert visible_only((instance,))["CUDA_VISIBLE_DEVICES"] == "MIG-0-0"
    assert visible_only((PROCESSOR,))["CUDA_VISIBLE_DEVICES"] == ""


def test_the_processor_is_always_listed_last():
    assert list_devices()[-1].kind == "cpu"

"""Which GPUs an installed PyTorch can use, without importing it."""

import pytest
import torch

from loratory.engine.hardware.cuda import list_cuda_devices
from loratory.engine.hardware.device import MemoryNow
from loratory.engine.hardware.libraries import Driver, TorchBuild, installed_torch, note_architectures
from tests.hardware.fake_nvml import GTX_1080, RTX_4090, FakeNvml

FOR_CUDA_13 = TorchBuild("2.13.0+cu130", "13.0", ("sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "compute_120"))
NEW_DRIVER, OLD_DRIVER = Driver("580.1", (13, 0)), Driver("550.54", (12, 4))


@pytest.mark.parametrize(
    ("capability", "usable"),
    [
        ((6, 1), False),  # GTX 10xx
        ((7, 0), False),  # V100: older than sm_75, of the same major version
        ((7, 5), True),
        ((8, 9), True),  # by the code for 8.6
        ((9, 0), True),  # by the code for it alone
        ((10, 3), True),
        ((11, 0), False),
        ((12, 1), True),  # by the portable code
        ((13, 0), True),
    ],
)
def test_a_gpu_needs_kernels_for_its_compute_capability(capability, usable):
    assert (FOR_CUDA_13.obstacle("a GPU", capability, NEW_DRIVER) is None) is usable


def test_an_obstacle_has_the_facts_and_what_to_install():
    kernels = FOR_CUDA_13.obstacle("GeForce GTX 1080", (6, 1), NEW_DRIVER)
    driver = FOR_CUDA_13.obstacle("Tesla T4", (7, 5), OLD_DRIVER)
    processor_alone = TorchBuild("2.13.0+cpu", None).obstacle("Tesla T4", (7, 5), NEW_DRIVER)

    assert all(fact in kernels.what for fact in ("GeForce GTX 1080", "6.1", "2.13.0+cu130", "13.0", "sm_75"))
    assert all(fact in driver.what for fact in ("13.0", "550.54", "12.4"))
    assert "CUDA 12" in driver.fix
    assert "without CUDA" in processor_alone.what
    assert all("pytorch.org" in each.fix for each in (kernels, driver, processor_alone))


def test_a_newer_cuda_of_the_same_major_version_runs_on_an_older_driver():
    """CUDA's minor version compatibility."""
    assert TorchBuild("2.9.0+cu128", "12.8").obstacle("Tesla T4", (7, 5), OLD_DRIVER) is None


def test_where_the_architectures_are_not_known_nothing_is_refused_for_them():
    assert TorchBuild("2.13.0+cu130", "13.0").obstacle("a GPU", (6, 1), NEW_DRIVER) is None


def test_gpus_are_listed_with_what_keeps_pytorch_from_them():
    old, new = list_cuda_devices(FakeNvml(GTX_1080, RTX_4090), MemoryNow(1, 1), FOR_CUDA_13)

    assert (old.capability, new.capability) == ((6, 1), (8, 9))
    assert "no kernels" in old.obstacle.what
    assert new.obstacle is None
    (behind,) = list_cuda_devices(FakeNvml(RTX_4090, cuda=12040), MemoryNow(1, 1), FOR_CUDA_13)
    assert "driver 550.54.15" in behind.obstacle.what


def test_the_installed_torch_is_known_as_it_knows_itself(home):
    build = installed_torch(home)

    assert (build.version, build.cuda) == (str(torch.__version__), torch.version.cuda)


def test_architectures_are_known_once_a_process_with_torch_has_noted_them(home):
    note_architectures(home, str(torch.__version__), ["sm_75", "sm_90"])
    assert installed_torch(home).architectures == ("sm_75", "sm_90")

    note_architectures(home, "1.0", ["sm_35"])
    assert installed_torch(home).architectures == ()  # those of another version

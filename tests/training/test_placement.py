"""Where a run trains: a GPU before Apple's, before the processor, unless the settings say the processor."""

from dataclasses import replace

import pytest
import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import DeviceError
from loratory.engine.hardware import devices as hardware
from loratory.engine.hardware import libraries
from loratory.engine.hardware.device import Device, MemoryNow
from loratory.engine.hardware.libraries import TorchBuild
from loratory.engine.training import placement
from loratory.engine.training.placement import (
    apple_notes,
    choose_placement,
    choose_precision,
    resumed_notes,
    skipped_device_notes,
)
from tests.hardware.fake_nvml import GTX_1080, RTX_4090, FakeNvml
from tests.training.tiny_training import GPU

PROCESSOR = Device("cpu", 0, "a processor", 8 << 30, 8 << 30, has_fast_bfloat16=False, cores=2)


@pytest.fixture
def machine(monkeypatch):
    """Pretend a machine with a GPU or without, by Apple or not."""
    threads = torch.get_num_threads()

    def build(*, cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(placement, "list_devices", lambda: (GPU, PROCESSOR) if cuda else (PROCESSOR,))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 0)

    yield build
    torch.set_num_threads(threads)


def choose(**run):
    config = config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "d"}, "run": run})
    return choose_placement(config)


@pytest.mark.parametrize(
    ("cuda", "mps", "kind"),
    [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, True, "cuda")],
)
def test_the_quickest_device_there_is(machine, cuda, mps, kind):
    machine(cuda=cuda, mps=mps)

    assert choose().torch_device.type == kind


def test_the_processor_where_the_settings_name_it(machine):
    machine(cuda=True, mps=True)

    assert choose(devices="cpu").torch_device.type == "cpu"


@pytest.mark.parametrize("has_advice", [True, False], ids=["torch reports it", "torch does not"])
def test_apples_gpu_is_described_by_the_memory_that_it_shares(machine, monkeypatch, has_advice):
    machine(cuda=False, mps=True)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("loratory.engine.hardware.processor._chip", lambda: "Apple M2")
    monkeypatch.setattr(placement, "memory_now", lambda: MemoryNow(8 << 30, 6 << 30))
    if has_advice:
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5 << 30)
    else:
        monkeypatch.delattr(torch.mps, "recommended_max_memory")

    device = choose().device

    assert (device.kind, device.name) == ("mps", "Apple M2 GPU")
    assert (device.total_bytes, device.free_bytes) == ((5 << 30, 5 << 30) if has_advice else (8 << 30, 6 << 30))


SPLIT = {"devices": [0, 1], "device_map": "balanced"}
OLDER = replace(GPU, index=1, name="an older GPU", has_fast_bfloat16=False)


def test_a_split_run_trains_on_all_its_gpus_in_a_dtype_of_all(machine, monkeypatch):
    machine(cuda=True, mps=False)
    monkeypatch.setattr(placement, "list_devices", lambda: (GPU, OLDER, PROCESSOR))

    chosen = choose(**SPLIT)

    assert chosen.layer_devices == (GPU, OLDER)
    assert chosen.torch_indexes == (0, 1)
    assert chosen.device_name == "a GPU + an older GPU"
    assert not chosen.device.has_fast_bfloat16


@pytest.mark.parametrize(("gpus", "world_size"), [((GPU,), "1"), ((GPU, OLDER), "2")], ids=["too few", "launched"])
def test_a_split_over_too_few_gpus_or_several_processes_is_refused(machine, monkeypatch, gpus, world_size):
    machine(cuda=True, mps=False)
    monkeypatch.setattr(placement, "list_devices", lambda: (*gpus, PROCESSOR))
    monkeypatch.setenv("WORLD_SIZE", world_size)

    with pytest.raises(DeviceError):
        choose(**SPLIT)


@pytest.mark.parametrize(("rank", "expected"), [("0", 0), ("1", 1)])
def test_a_launched_process_takes_the_gpu_of_its_rank(machine, monkeypatch, rank, expected):
    machine(cuda=True, mps=False)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(placement, "list_devices", lambda: (GPU, OLDER, PROCESSOR))

    assert choose().torch_device.index == expected


@pytest.fixture
def driver(monkeypatch):
    """Pretend a machine whose driver lists GPUs, with a build of PyTorch that may see them or not."""
    threads = torch.get_num_threads()

    def install(nvml: FakeNvml, build: TorchBuild, *, sees_gpus: bool = False, visible: str | None = None) -> None:
        for module in (placement, hardware):
            monkeypatch.setattr(module, "load_nvml", lambda: nvml)
        monkeypatch.setattr(libraries, "_build_on_disk", lambda: build)
        monkeypatch.setattr(torch, "__version__", build.version)
        monkeypatch.setattr(torch.version, "cuda", build.cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpus)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(build.architectures))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    yield install
    torch.set_num_threads(threads)


WITH_CUDA = TorchBuild("2.13.0+cu130", "13.0", ("sm_75", "sm_80", "compute_120"))
WITHOUT_CUDA = TorchBuild("2.13.0+cpu", None)


@pytest.mark.parametrize(
    ("nvml", "build", "facts", "fix"),
    [
        (FakeNvml(RTX_4090), WITHOUT_CUDA, ("2.13.0+cpu", "GeForce RTX 4090"), "build with CUDA"),
        (FakeNvml(RTX_4090, cuda=12040), WITH_CUDA, ("13.0", "550.54.15", "12.4"), "Update the driver"),
        (FakeNvml(RTX_4090), WITH_CUDA, ("13.0", "550.54.15", "GeForce RTX 4090"), "nvidia-smi"),
    ],
    ids=["PyTorch without CUDA", "old driver", "other cause"],
)
def test_a_gpu_that_torch_cannot_use_is_never_left_for_the_processor(home, driver, nvml, build, facts, fix):
    driver(nvml, build)

    with pytest.raises(DeviceError) as error_info:
        choose()

    assert all(fact in error_info.value.what for fact in facts)
    assert fix in error_info.value.fix
    assert choose(devices="cpu").torch_device.type == "cpu"


@pytest.mark.parametrize(("visible", "run"), [("7", {}), ("GPU-ffff", {}), ("", {"devices": [0]})])
def test_a_run_with_a_gpu_reports_that_its_environment_hides_it(home, driver, visible, run):
    driver(FakeNvml(RTX_4090), WITH_CUDA, visible=visible)

    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES"):
        choose(**run)


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_on_purpose_leave_the_processor(home, driver, visible):
    driver(FakeNvml(RTX_4090), WITH_CUDA, visible=visible)

    assert choose().torch_device.type == "cpu"


def test_a_gpu_without_kernels_is_refused_before_anything_is_loaded(home, driver):
    driver(FakeNvml(GTX_1080), WITH_CUDA, sees_gpus=True)

    with pytest.raises(DeviceError, match=r"no kernels for GeForce GTX 1080, whose compute capability is 6\.1"):
        choose()


def test_a_gpu_that_auto_skipped_is_mentioned(home, driver):
    driver(FakeNvml(RTX_4090), WITHOUT_CUDA, visible="")
    config = config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "d"}})

    (note,) = skipped_device_notes(config, choose_placement(config), home)

    assert "GeForce RTX 4090" in note


@pytest.mark.parametrize(("visible", "first"), [("GPU-1a5e-77,GPU-0a5e-77", 1), ("1,0", 1), ("GPU-0a5e-77", 0)])
def test_torchs_first_gpu_is_the_first_that_the_environment_names(home, driver, visible, first):
    driver(FakeNvml(RTX_4090, RTX_4090), WITH_CUDA, sees_gpus=True, visible=visible)

    assert choose().device.index == first


def config(dtype="auto", method="lora"):
    return config_from_mapping(
        {
            "model": {"id": "m", "compute_dtype": dtype},
            "adapter": {"method": method},
            "dataset": {"source": "d"},
        }
    )


def device(kind, *, bfloat16):
    return Device(kind, 0, "a device", 8 << 30, 8 << 30, bfloat16)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("mps", True, torch.bfloat16),
        ("mps", False, torch.float32),
    ],
)
def test_auto_takes_what_the_device_is_quick_at(kind, bfloat16, expected):
    assert choose_precision(config(), device(kind, bfloat16=bfloat16)).compute is expected


@pytest.mark.parametrize(
    ("checkpoint_dtype", "kind", "bfloat16", "expected"),
    [
        ("bfloat16", "cpu", False, torch.bfloat16),  # slowly, and the same
        ("float32", "cpu", True, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("float16", "cuda", True, torch.float16),
        ("bfloat16", "cuda", False, torch.float16),
        ("float16", "cpu", False, torch.float32),
        ("bfloat16", "mps", False, torch.float32),
        ("a word of a later version", "cuda", True, torch.bfloat16),
    ],
)
def test_a_resumed_run_continues_in_what_it_began_in_or_reports_it(checkpoint_dtype, kind, bfloat16, expected):
    where = device(kind, bfloat16=bfloat16)
    chosen = choose_precision(config(), where, checkpoint_dtype)

    assert chosen.compute is expected
    notes = resumed_notes(config(), where, checkpoint_dtype)
    assert len(notes) == (chosen.compute_name != checkpoint_dtype)
    assert all(checkpoint_dtype in note and f"continues in {chosen.compute_name}" in note for note in notes)


def test_what_the_settings_name_holds_for_a_resumed_run_too():
    assert choose_precision(config("float32"), device("cpu", bfloat16=True), "bfloat16").compute is torch.float32
    assert resumed_notes(config("float32"), device("cpu", bfloat16=True), "float16") == ()
    assert resumed_notes(config(), device("cpu", bfloat16=True), None) == ()


def test_full_fine_tuning_holds_its_weights_in_float32_and_computes_in_less():
    precision = choose_precision(config(method="none"), device("cpu", bfloat16=True))

    assert precision.frozen is torch.float32
    assert precision.compute is torch.bfloat16
    assert precision.compute_name == "bfloat16"


def test_what_an_older_macos_forces_is_reported():
    old, new = device("mps", bfloat16=False), device("mps", bfloat16=True)

    (note,) = apple_notes(config(), old)
    assert "macOS 14" in note
    assert apple_notes(config(), new) == apple_notes(config("float16"), old) == ()
    assert apple_notes(config(), device("cpu", bfloat16=False)) == ()

"""What is done otherwise on GPUs than on a processor, as far as a machine without one can tell.

The rest is in tests/gpu.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from loratory.engine.hardware.device import Device
from loratory.engine.models.source import ModelSource
from loratory.engine.processes.spawn import PRODUCT_CACHE_CAPACITY
from loratory.engine.training import build, placement, worker
from loratory.engine.training.build import load_model, training_arguments
from loratory.engine.training.checkpoints.state_files import load_plain
from loratory.engine.training.failure import explain
from loratory.engine.training.ops.products import DropoutMask
from loratory.engine.training.placement import Placement, choose_placement, choose_precision
from tests.training.tiny_training import CPU, GPU, ON_CPU, make_config, make_rows, make_training, train_tiny

ON_GPU = Placement(GPU, torch.device("cuda", 0))
ON_TWO = Placement(GPU, torch.device("cuda", 0), layer_devices=(GPU, replace(GPU, index=1)))
ON_MPS = Placement(replace(GPU, kind="mps"), torch.device("mps"))
OLD = replace(GPU, has_fast_bfloat16=False)
PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@pytest.fixture
def loaded_modules(monkeypatch):
    """Replace from_pretrained by a function that records its arguments."""
    requests = []
    model = SimpleNamespace(config=SimpleNamespace(use_cache=True), modules=list, parameters=list, buffers=list)

    def from_pretrained(location, **arguments):
        requests.append(arguments)
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(build, "plan_layer_split", lambda source, config, devices: {"layers": len(devices)})
    monkeypatch.setattr(build, "attach_device_hooks", lambda model: requests.append("hooked"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (8, 6))
    return requests


@pytest.mark.parametrize(
    ("where", "quantization", "expected"),
    [
        (ON_CPU, "none", None),
        (ON_CPU, "nf4", {"": torch.device("cpu")}),
        (ON_GPU, "none", {"": torch.device("cuda", 0)}),
        (ON_GPU, "int8", {"": torch.device("cuda", 0)}),
        (ON_MPS, "none", {"": torch.device("mps")}),
        (ON_TWO, "none", {"layers": 2}),
        (ON_TWO, "nf4", {"layers": 2}),
    ],
)
def test_a_model_is_loaded_onto_its_device_at_once(where, quantization, expected, loaded_modules):
    config = make_config(Path("m"), model={"quantization": quantization})

    load_model(ModelSource("m", "m"), config, choose_precision(config, where.device), where)

    assert loaded_modules[0].get("device_map") == expected
    assert ("hooked" in loaded_modules) is bool(where.layer_devices)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=str,
)
def test_running_out_of_memory_while_loading_is_not_taken_for_a_broken_model(error, monkeypatch):
    def from_pretrained(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    config = make_config(Path("m"))

    with pytest.raises(RuntimeError) as error_info:
        load_model(ModelSource("m", "m"), config, choose_precision(config, ON_CPU.device), ON_CPU)

    assert explain(error_info.value, None).cause == "out_of_memory"


def test_int8_layers_write_nothing_into_the_log(tiny_model_folder, tmp_path, caplog):
    config = make_config(tiny_model_folder, model={"quantization": "int8"}, training={"max_steps": 1})
    training = make_training(config, make_rows(4), tmp_path)
    assert any(type(module).__name__ == "Linear8bitLt" for module in training.trainer.model.modules())

    training.trainer.train()

    assert [record for record in caplog.records if record.name.startswith("bitsandbytes")] == []


def test_flash_attention_must_run_on_all_of_several_gpus(monkeypatch):
    with_an_old_one = replace(ON_TWO, layer_devices=(GPU, replace(OLD, index=1)))
    monkeypatch.setattr(build, "is_flash_attn_2_available", lambda: True)
    config = make_config(Path("m"), model={"compute_dtype": "bfloat16"})

    assert build.choose_attention(config, ON_GPU) == "flash_attention_2"
    assert build.choose_attention(config, with_an_old_one) is None


@pytest.mark.parametrize(
    ("where", "scales", "uses_cpu"),
    [(Placement(OLD, torch.device("cuda", 0)), True, False), (ON_GPU, False, False), (ON_CPU, False, True)],
)
def test_float16_scales_its_loss(where, scales, uses_cpu, tmp_path):
    config = make_config(Path("m"), model={"compute_dtype": "auto"})

    arguments = training_arguments(config.training, tmp_path, choose_precision(config, where.device), where)

    assert (arguments.fp16, arguments.bf16, arguments.use_cpu) == (scales, False, uses_cpu)


def test_the_scale_of_the_loss_survives_a_checkpoint(tiny_model_folder, tmp_path):
    def train(scale):
        config = make_config(tiny_model_folder, training={"max_steps": 1})
        training = train_tiny(config, make_rows(4), tmp_path)
        training.trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return training.trainer

    saved, folder = train(128.0), tmp_path / "checkpoint"
    folder.mkdir()
    saved.write_state(folder, saved.gather_state())
    again = train(512.0)

    again._load_scaler(str(folder))

    assert load_plain(folder / "scaler.json")["scale"] == again.accelerator.scaler.get_scale() == 128.0


def test_a_gpu_that_the_driver_does_not_list_is_described_by_torch(monkeypatch):
    monkeypatch.setattr(placement, "list_devices", lambda: (CPU,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="a slice of a GPU"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 30, 5 << 30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)

    chosen = choose_placement(make_config(Path("m")))

    assert chosen.device == Device("cuda", 0, "a slice of a GPU", 5 << 30, 3 << 30, has_fast_bfloat16=True)


def test_a_gpu_keeps_the_mask_of_dropout_instead_of_a_seed():
    mask = DropoutMask.draw(torch.empty(50, 4, device="meta"), 0.25)

    assert (mask.seed, mask.tensor.shape, mask.tensor.dtype, mask.tensor.device.type) == (
        None,
        (50, 4),
        torch.bool,
        "meta",
    )
    assert mask.keep == 0.75
    mask_tensor = torch.tensor([True, False, True])
    assert DropoutMask(0.75, None, mask_tensor).apply(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_CUDA_ALLOC_CONF": None}),
        ({}, dict.fromkeys(PRODUCT_CACHES, str(PRODUCT_CACHE_CAPACITY))),
        ({"LRU_CACHE_CAPACITY": "777"}, {"LRU_CACHE_CAPACITY": "777"}),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_FSDP": "true", "RANK": "1"},
            {"ACCELERATE_MIXED_PRECISION": None, "ACCELERATE_USE_FSDP": None, "RANK": "1"},
        ),
        ({"USE_HUB_KERNELS": "YES"}, {"USE_HUB_KERNELS": "0"}),
    ],
    ids=[
        "allocator",
        "own allocator",
        "its newer name",
        "product caches",
        "own cache",
        "Accelerate's settings",
        "the Hub's kernels",
    ],
)
def test_the_worker_sets_what_a_person_has_not_and_ignores_settings_of_accelerate(preset, expected, monkeypatch):
    names = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", *PRODUCT_CACHES}
    environment = {name: value for name, value in os.environ.items() if name not in names} | preset
    monkeypatch.setattr(os, "environ", environment)

    worker._prepare_environment()

    assert {name: environment.get(name) for name in expected} == expected

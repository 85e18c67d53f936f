"""Which attention kernel a run gets; flash attention only where it can run."""

import pytest
import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.libraries import library_version
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.workload import has_flash_attention, workload_of_step
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.training import build
from loratory.engine.training.build import choose_attention
from loratory.engine.training.placement import Placement

AMPERE, TURING = (8, 6), (7, 5)


@pytest.fixture
def gpu(monkeypatch):
    """Make a placement on a GPU of some capability, with or without flash_attn installed."""

    def make(capability, *, installed=True):
        monkeypatch.setattr(build, "is_flash_attn_2_available", lambda: installed)
        device = Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, has_fast_bfloat16=capability >= (8, 0))
        return Placement(device, torch.device("cuda", 0))

    return make


def choose(placement, **model):
    config = config_from_mapping({"model": {"id": "m", **model}, "dataset": {"source": "d"}})
    return choose_attention(config, placement)


def test_flash_attention_is_taken_where_it_is_installed_and_runs(gpu):
    assert choose(gpu(AMPERE)) == "flash_attention_2"


@pytest.mark.parametrize(
    ("capability", "installed", "model"),
    [(AMPERE, False, {}), (TURING, True, {}), (AMPERE, True, {"compute_dtype": "float32"})],
    ids=["not installed", "older than Ampere", "32 bits"],
)
def test_else_transformers_chooses(gpu, capability, installed, model):
    assert choose(gpu(capability, installed=installed), **model) is None


def test_an_explicit_attention_is_kept(gpu):
    assert choose(gpu(AMPERE), attn_implementation="sdpa") == "sdpa"


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        (TURING, "float16", ("efficient", True)),
        (AMPERE, "float32", ("efficient", True)),
        (AMPERE, "bfloat16", ("flash", False)),
        (TURING, "bfloat16", ("math", False)),  # no fused kernel has it there
    ],
)
def test_the_estimate_knows_the_kernel_of_a_grouped_query_model_without_a_mask(capability, dtype, expected):
    shape = inventory_of(find_in_catalog("Qwen/Qwen2.5-0.5B-Instruct").config)
    assert shape.num_key_value_heads < shape.num_attention_heads
    device = Device("cuda", 0, "a GPU", 16 << 30, 16 << 30, has_fast_bfloat16=capability >= (8, 0))
    config = config_from_mapping(
        {
            "model": {"id": "m", "compute_dtype": dtype, "attn_implementation": "sdpa"},
            "dataset": {"source": "d"},
            "training": {"per_device_train_batch_size": 1, "max_length": 2048},
        }
    )

    workload = workload_of_step(shape, config, device)

    assert (workload.attention, workload.expands_key_values) == expected


@pytest.mark.parametrize(
    ("distribution", "version", "is_version_2"),
    [("flash-attn", "2.8.3", True), ("flash-attn", "2.3.2", False), ("flash-attn-4", "4.0.0", False)],
)
def test_flash_attention_is_known_by_its_distribution_not_by_its_module(
    monkeypatch, tmp_path, distribution, version, is_version_2
):
    (tmp_path / "flash_attn").mkdir()
    facts = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    library_version.cache_clear()

    assert has_flash_attention() is is_version_2
    library_version.cache_clear()

"""A model that is divided among devices: all of it is there once, and each device needs less than one alone would."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.advice import advise
from loratory.engine.memory.compare import share_among
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.layer_split import shape_of_part
from loratory.engine.memory.persistent import weight_bytes
from loratory.engine.memory.workload import workload_of_run
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
MODELS = ["Qwen/Qwen3-4B", "meta-llama/Llama-3.1-8B-Instruct"]  # with a tied head, and with one of its own
GPU = Device("cuda", 0, "a GPU", 24 * GIB, 24 * GIB, has_fast_bfloat16=True)
METHODS = [
    {},
    {"model": {"id": "m", "quantization": "nf4"}},
    {"adapter": {"method": "none"}, "training": {"gradient_checkpointing": True}},
    {"adapter": {"method": "ia3"}},
    {"adapter": {"method": "prefix_tuning"}},
]


@pytest.fixture(scope="module", params=MODELS)
def estimator(request):
    return Estimator(inventory_of(find_in_catalog(request.param).config), GPU)


def config_of(sections=None, devices=1, **more):
    run = {"run": {"devices": list(range(devices)), "device_map": "balanced"}} if devices > 1 else {}
    return config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "-"}, **(sections or {}), **run, **more})


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_every_module_stands_on_exactly_one_device(estimator, devices):
    config = config_of(devices=devices)
    workload = workload_of_run(estimator.shape, config, GPU)

    parts = estimator.parts(workload, devices)

    names = [name for part in parts for name in part.modules]
    assert sorted(names) == sorted(module.name for module in estimator.shape.modules)
    shares = [sum(weight_bytes(shape_of_part(estimator.shape, part).modules, workload)) for part in parts]
    assert sum(shares) == sum(weight_bytes(estimator.shape.modules, workload))
    assert [part.has_embeddings for part in parts] == [True] + [False] * (devices - 1)
    tied = estimator.shape.tie_word_embeddings
    assert [part.has_head for part in parts].index(True) == (0 if tied else devices - 1)


@pytest.mark.parametrize("sections", METHODS, ids=["lora", "qlora", "full", "ia3", "prefix"])
@pytest.mark.parametrize("devices", [2, 4])
def test_the_fullest_device_needs_little_more_than_its_share(estimator, sections, devices):
    alone = estimator.estimate(config_of(sections))
    spread = estimator.estimate(config_of(sections, devices))
    (share,) = [s for s in share_among(estimator, config_of(sections), devices) if s.sharing == "device_map"]

    assert alone.needed_bytes / devices < spread.needed_bytes < alone.needed_bytes / devices * 1.3 + GIB
    assert spread.needed_bytes == max(share.each_needed_bytes) == share.needed_bytes
    assert len(share.each_needed_bytes) == devices
    assert spread.parameters == alone.parameters
    assert "fullest" in spread.notes[-1]


def test_the_device_with_the_head_carries_the_logits(estimator):
    config = config_of({"training": {"max_length": 2048}}, devices=2)
    parts = estimator.split_layers(workload_of_run(estimator.shape, config, GPU), 2)

    beside = {
        part.part.has_head: part.peak.phase_bytes["forward"] - part.peak.persistent.total - part.peak.kept_bytes
        for part in parts
    }
    chunk = 256 * 2**20  # of logits, engine/training/ops/loss.py
    assert beside[False] < chunk < beside[True]


def test_what_is_advised_counts_the_fullest_device(estimator):
    config = config_of({"training": {"max_length": 4096, "per_device_train_batch_size": 4}}, devices=2)

    for change in advise(estimator.shape, config, GPU).changes:
        assert change.needed_bytes < estimator.need(config).needed_bytes


def test_there_is_no_figure_for_more_devices_than_layers(estimator):
    assert [share.sharing for share in share_among(estimator, config_of(), 1000)] == ["DDP", "FSDP"]

"""What would make a run fit, and what room is left: every row can be picked, and does what it says."""

import re

import pytest

from engine.config.load import config_from_mapping, with_overrides
from engine.hardware.device import Device
from engine.inspector.inventory import inventory_of
from engine.memory.advice import advise
from engine.memory.estimate import estimate_memory
from engine.models.catalog import find_in_catalog
from ui.views.advice import render_advice

GIB = 2**30
DRAFT = {
    "model": {"id": "Qwen/Qwen3-4B", "quantization": "nf4"},
    "dataset": {"source": "-"},
    "training": {
        "gradient_checkpointing": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
        "max_length": 2048,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shape():
    return inventory_of(find_in_catalog("Qwen/Qwen3-4B").config)


def gpu(gib):
    return Device("cuda", 0, "a GPU", gib * GIB, gib * GIB, has_fast_bfloat16=True)


def offered(shape, gib, draft=DRAFT):
    config, device = config_from_mapping(draft), gpu(gib)
    estimate = estimate_memory(shape, config, device)
    advice = advise(shape, config, device)
    names = re.findall(r'data-pick="([^"]+)"', render_advice(advice, estimate))
    return estimate, {change.change: change for change in (*advice.changes, *advice.limits)}, names


def test_where_it_fits_the_room_can_be_picked(shape):
    estimate, known, names = offered(shape, 80)

    assert estimate.verdict == "fits"
    assert names[:2] == ["Switch gradient checkpointing off", "Hold the frozen weights in 16 bits"]
    assert any(name.startswith("The largest batch: ") for name in names)
    assert any(name.startswith("The longest rows: ") for name in names)
    for name in names:
        config = config_from_mapping(with_overrides(DRAFT, known[name].overrides))
        assert estimate_memory(shape, config, gpu(80)).verdict == "fits"


def test_where_it_does_not_fit_the_largest_batch_and_length_can_be_picked(shape):
    greedy = DRAFT | {"training": DRAFT["training"] | {"per_device_train_batch_size": 64, "max_length": 4096}}

    estimate, known, names = offered(shape, 24, greedy)

    assert estimate.verdict == "does_not_fit"
    (batch,) = [name for name in names if name.startswith("The largest batch: ")]
    assert known[batch].verdict == "fits"
    assert any("max_length" in override for name in names for override in known[name].overrides)
    assert len(set(names)) == len(names)


def test_where_nothing_helps_a_smaller_model_is_named(shape):
    estimate = estimate_memory(shape, config_from_mapping(DRAFT), gpu(1))
    advice = advise(shape, config_from_mapping(DRAFT), gpu(1))

    html = render_advice(advice.model_copy(update={"changes": ()}), estimate)

    assert "a smaller model would" in html

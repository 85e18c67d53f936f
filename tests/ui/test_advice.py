"""What would make a run fit, and what room is left: every row can be picked, and does what it says."""

import re
from typing import Any

import pytest

from engine.config.load import config_from_mapping, with_overrides
from engine.hardware.device import Device
from engine.inspector.worker.inventory import inventory_of
from engine.memory.advice import advise
from engine.memory.estimate import estimate_memory
from engine.models.catalog import find_in_catalog
from ui.views.memory import render_advice

GIB = 2**30
DRAFT: dict[str, Any] = {
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
    return Device("cuda", 0, "a GPU", int(gib * GIB), int(gib * GIB), has_fast_bfloat16=True)


def advise_changes(shape, gib, draft=DRAFT):
    config, device = config_from_mapping(draft), gpu(gib)
    estimate = estimate_memory(shape, config, device)
    advice = advise(shape, config, device)
    rows = re.findall(r'data-pick="([^"]+)"', render_advice(advice, estimate))
    known = {" ".join(change.overrides): change for change in (*advice.changes, *advice.limits)}
    return estimate, [known[row] for row in rows]


def test_where_it_fits_the_room_can_be_picked(shape):
    estimate, rows = advise_changes(shape, 80)

    assert estimate.verdict == "fits"
    kinds = [change.kind for change in rows]
    assert kinds[:2] == ["checkpointing_off", "unquantized"]
    assert {"largest_batch", "longest_rows"} <= set(kinds)
    for change in rows:
        config = config_from_mapping(with_overrides(DRAFT, change.overrides))
        assert estimate_memory(shape, config, gpu(80)).verdict == "fits"


def test_where_it_does_not_fit_the_largest_batch_and_length_can_be_picked(shape):
    greedy = DRAFT | {"training": DRAFT["training"] | {"per_device_train_batch_size": 64, "max_length": 4096}}

    estimate, rows = advise_changes(shape, 24, greedy)

    assert estimate.verdict == "does_not_fit"
    assert any(change.kind == "largest_batch" and change.verdict == "fits" for change in rows)
    assert any("max_length" in override for change in rows for override in change.overrides)
    assert len({change.overrides for change in rows}) == len(rows)


def test_where_nothing_helps_a_smaller_model_is_named(shape):
    estimate = estimate_memory(shape, config_from_mapping(DRAFT), gpu(1))
    advice = advise(shape, config_from_mapping(DRAFT), gpu(1))

    html = render_advice(advice.model_copy(update={"changes": ()}), estimate)

    assert "a smaller model would" in html

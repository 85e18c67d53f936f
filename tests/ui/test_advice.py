"""What would make a run fit, and what room is left: every row can be picked, and does what it says."""

import re
from typing import Any

import pytest

from engine.config.load import config_from_mapping, with_overrides
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.inspector.worker.inventory import inventory_of
from engine.memory.advice import advise
from engine.memory.estimate import estimate_memory
from engine.models.catalog import find_in_catalog
from ui.draft import Draft
from ui.side_panel import with_advice
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
    return Device("cuda", 0, "a GPU", gib * GIB, gib * GIB, has_fast_bfloat16=True)


def offered(shape, gib, draft=DRAFT):
    config, device = config_from_mapping(draft), gpu(gib)
    estimate = estimate_memory(shape, config, device)
    advice = advise(shape, config, device)
    names = re.findall(r'data-pick="([^"]+)"', render_advice(advice, estimate))
    return estimate, {change.kind: change for change in (*advice.changes, *advice.limits)}, names


def test_where_it_fits_the_room_can_be_picked(shape):
    estimate, known, names = offered(shape, 80)

    assert estimate.verdict == "fits"
    assert names[:2] == ["checkpointing_off", "unquantized"]
    assert {"largest_batch", "longest_rows"} <= set(names)
    for name in names:
        config = config_from_mapping(with_overrides(DRAFT, known[name].overrides))
        assert estimate_memory(shape, config, gpu(80)).verdict == "fits"


def test_where_it_does_not_fit_the_largest_batch_and_length_can_be_picked(shape):
    greedy = DRAFT | {"training": DRAFT["training"] | {"per_device_train_batch_size": 64, "max_length": 4096}}

    estimate, known, names = offered(shape, 24, greedy)

    assert estimate.verdict == "does_not_fit"
    assert known["largest_batch"].verdict == "fits"
    assert any("max_length" in override for name in names for override in known[name].overrides)
    assert len(set(names)) == len(names)


def test_where_nothing_helps_a_smaller_model_is_named(shape):
    estimate = estimate_memory(shape, config_from_mapping(DRAFT), gpu(1))
    advice = advise(shape, config_from_mapping(DRAFT), gpu(1))

    html = render_advice(advice.model_copy(update={"changes": ()}), estimate)

    assert "a smaller model would" in html


def draft_on(shape, gib):
    config, device = config_from_mapping(DRAFT), gpu(gib)
    mapping = config.model_dump(mode="json")
    return Draft(mapping, config, config, (), (), shape, device, 1, estimate_memory(shape, config, device))


def test_a_change_is_applied_although_free_memory_has_moved_since_it_was_drawn(shape):
    drawn, later = draft_on(shape, 80), draft_on(shape, 60)
    words = [re.findall(r"The largest batch: [\d,]+", render_advice(advise(shape, draft.config, draft.device), draft.estimate)) for draft in (drawn, later)]  # fmt: skip
    assert words[0] != words[1]

    for kind in ("largest_batch", "longest_rows", "checkpointing_off"):
        changed = with_advice(later, kind)
        assert changed != later.mapping
        assert estimate_memory(shape, config_from_mapping(changed), later.device).verdict == "fits"


def test_a_change_that_does_not_help_any_more_is_refused_in_words(shape):
    with pytest.raises(EngineError, match="no longer helps"):
        with_advice(draft_on(shape, 60), "smaller_batch")

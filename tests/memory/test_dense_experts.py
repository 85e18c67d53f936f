"""Experts held as bare parameters stay in 16 bits under any quantization, and the estimate reports it."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import estimate_memory
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
GPU = Device("cuda", 0, "a GPU", 80 * GIB, 80 * GIB, has_fast_bfloat16=True)
WITH_EXPERTS, WITHOUT = "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-4B"
NOTE = "this model holds its experts as bare parameters"


def estimate_model(model, quantization, **sections):
    shape = inventory_of(find_in_catalog(model).config)
    values = {"model": {"id": model, "quantization": quantization}, "dataset": {"source": "-"}} | sections
    return shape, estimate_memory(shape, config_from_mapping(values), GPU)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_experts_stand_among_what_quantization_leaves_alone(quantization):
    shape, estimate = estimate_model(WITH_EXPERTS, quantization)
    experts = sum(2 * module.parameters for module in shape.modules if module.kind == "experts")
    parts = {component.key: component for component in estimate.components}

    assert parts["weights"].label == f"Weights ({quantization})"
    assert parts["weights"].bytes < 2 * GIB
    assert parts["unquantized"].label == "Experts, embeddings, norms, head"
    assert parts["unquantized"].bytes > experts > 50 * GIB
    (note,) = [note for note in estimate.notes if NOTE in note]
    assert note.startswith(f"{experts / GIB:.2f} of ")
    assert f"stay in 16 bits although quantization is {quantization}" in note
    assert note.endswith("and which get no adapter.")


@pytest.mark.parametrize(("model", "quantization"), [(WITH_EXPERTS, "none"), (WITHOUT, "nf4"), (WITHOUT, "none")])
def test_where_nothing_is_left_dense_against_the_setting_nothing_is_noted(model, quantization):
    _, estimate = estimate_model(model, quantization)

    assert not [note for note in estimate.notes if NOTE in note]
    assert "Embeddings, norms, head" in estimate.components_bytes

"""Every causal language model that transformers knows gets a figure or a message, never an accident."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.config.load import config_from_mapping
from engine.errors import ModelError
from engine.hardware.device import Device
from engine.inspector.inventory import inventory_of
from engine.memory.advice import advise
from engine.memory.estimate import estimate_memory
from engine.memory.methods import compare_methods

GPU = Device(
    kind="cuda",
    name="NVIDIA H100 80GB HBM3",
    index=0,
    total_bytes=80 << 30,
    free_bytes=79 << 30,
    cores=0,
    supports_bfloat16=True,
)
CONFIG = config_from_mapping({"model": {"id": "x"}, "dataset": {"source": "-"}})


def shape_of(model_type):
    """None where there is no default configuration, or one that describes no whole model, which is said."""
    try:
        values = {**AutoConfig.for_model(model_type).to_dict(), "model_type": model_type}
    except (ValueError, StrictDataclassError):
        return None
    try:
        return inventory_of(values)
    except ModelError:
        return None


@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_gets_a_figure_or_a_message(model_type):
    shape = shape_of(model_type)
    if shape is None:
        return

    estimate = estimate_memory(shape, CONFIG, GPU)

    weights = shape.num_parameters * 2
    assert weights < estimate.allocated_bytes < estimate.expected_bytes < estimate.needed_bytes
    assert len(compare_methods(shape, CONFIG, GPU)) == 8
    advise(shape, CONFIG, GPU)

"""Every causal language model that transformers knows has an exact inventory and a figure, or a message, never an accident."""

import importlib.util
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.errors import ModelError
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.compare import compare_methods
from loratory.engine.memory.estimate import estimate_memory

GPU = Device(
    kind="cuda",
    name="NVIDIA H100 80GB HBM3",
    index=0,
    total_bytes=80 << 30,
    free_bytes=79 << 30,
    cores=0,
    has_fast_bfloat16=True,
)
CONFIG = config_from_mapping({"model": {"id": "x"}, "dataset": {"source": "-"}})
# What advice changes in ways that the table of methods does not; how it searches depends on no architecture.
SMALLEST = config_from_mapping(
    {
        "model": {"id": "x"},
        "dataset": {"source": "-"},
        "training": {"gradient_checkpointing": True, "max_length": 128, "per_device_train_batch_size": 1},
    }
)
LAYERS = 12  # with fewer, some model types have no layer of one of their kinds


# Whose own defaults describe no whole model, and words of the message that reports it.
_NO_DEFAULTS = "describes no .* model that transformers can build"
DECLINED = {
    "blt": "has no hidden_size",  # works on bytes, by several models with sizes of their own
    "musicgen": "has no hidden_size",  # a decoder of sound, described in a part of its configuration
    "musicgen_melody": "has no hidden_size",
    "cohere_compass_text": f"{_NO_DEFAULTS}.*full_attention",  # no rotation for its kinds of layers
    "dbrx": f"{_NO_DEFAULTS}.*rope_theta",
    "dots1": f"{_NO_DEFAULTS}.*empty",  # no number of experts
    "hunyuan_v1_dense": f"{_NO_DEFAULTS}.*NoneType",  # no size of a head
    "hunyuan_v1_moe": f"{_NO_DEFAULTS}.*NoneType",
    "lfm2_moe": f"{_NO_DEFAULTS}.*NoneType",  # no list of layers
    "ministral": f"{_NO_DEFAULTS}.*NoneType",  # no size of a head
    "nemotron": f"{_NO_DEFAULTS}.*NoneType",
    "qwen4_exp": f"{_NO_DEFAULTS}.*NoneType",
    "qwen4_exp_text": f"{_NO_DEFAULTS}.*NoneType",
    "reformer": f"{_NO_DEFAULTS}.*is_decoder",  # no decoder unless it is told so
}
NEEDS_A_LIBRARY = {"gemma3n": "timm"}
NO_CONFIGURATION = frozenset({"gemma4_assistant"})  # refuses its own defaults


def values_of(model_type):
    """Return a model type's default configuration."""
    return {**AutoConfig.for_model(model_type).to_dict(), "model_type": model_type}


def config_of_few_layers(model_type):
    """Return it with fewer layers, of every kind that the model type has, unless it has rules about their number."""
    config = AutoConfig.for_model(model_type)
    if not isinstance(getattr(config, "num_hidden_layers", None), int) or config.num_hidden_layers <= LAYERS:
        return config
    try:
        return AutoConfig.for_model(model_type, num_hidden_layers=LAYERS)
    except StrictDataclassError:
        return config


# In the quick round, one of each kind of layer: dense, experts, states, latent and linear attention, positions of its own.
QUICK = set("bloom deepseek_v3 falcon gemma2 gpt2 jamba llama mamba2 mixtral phi3 qwen3 qwen3_next rwkv".split())
QUICK |= DECLINED.keys() | NO_CONFIGURATION
MODEL_TYPES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.e2e)
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_has_an_exact_inventory_and_a_figure_or_a_message(model_type):
    if model_type in NO_CONFIGURATION:
        with pytest.raises(StrictDataclassError):
            values_of(model_type)
        return
    library = NEEDS_A_LIBRARY.get(model_type)
    is_lacking = library is not None and importlib.util.find_spec(library) is None
    refusal = f"{_NO_DEFAULTS}.*{library}" if is_lacking else DECLINED.get(model_type)
    if refusal is not None:
        with pytest.raises(ModelError, match=refusal):
            inventory_of(values_of(model_type))
        return
    config = config_of_few_layers(model_type)
    shape = inventory_of({**config.to_dict(), "model_type": model_type})
    with torch.device("meta"):
        assert shape.num_parameters == AutoModelForCausalLM.from_config(config).num_parameters()
    assert not any(re.search(r"experts\.\d+\.", module.name) for module in shape.modules)  # which layers expect stacked

    estimate = estimate_memory(shape, CONFIG, GPU)

    weights = shape.num_parameters * 2
    assert weights < estimate.allocated_bytes < estimate.expected_bytes < estimate.needed_bytes
    assert len(compare_methods(shape, CONFIG, GPU)) == 1 + sum(
        len(method.comparison_rows) for method in METHODS.values()
    )
    assert weights < estimate_memory(shape, SMALLEST, GPU).allocated_bytes < estimate.allocated_bytes


def test_what_is_declined_is_what_transformers_has():
    listing = {*QUICK, *NEEDS_A_LIBRARY}

    assert listing <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

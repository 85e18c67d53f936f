"""What a model remembers while it answers: the estimate against the cache of a real model, filled as the chat fills it."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from loratory.engine.config.load import config_from_mapping
from loratory.engine.generation.worker import batch
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory import compare
from loratory.engine.memory.compare import cache_bytes, inference_workload
from loratory.engine.memory.workload import workload_of_run
from tests.training.tiny_training import CPU

PIECE = 32
LENGTH = 160
TINY: dict[str, Any] = {
    "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LINEAR = ["linear_attention", "full_attention"] * 2
FAMILIES: dict[str, Any] = {
    "llama": {},
    "mistral": {"sliding_window": 48},
    "gemma3_text": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "qwen3_5_text": {"layer_types": LINEAR, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                     "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 32},
    "mamba": {"state_size": 8, "intermediate_size": 128},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 32, "n_groups": 2},
}  # fmt: skip


def filled_cache(configuration):
    """Return the cache after a prompt that was read in pieces."""
    model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32).eval()
    cache = DynamicCache(config=configuration)
    name = "past_key_values" if "past_key_values" in model.forward.__code__.co_varnames else "cache"
    ids = torch.randint(3, 200, (1, LENGTH))
    with torch.inference_mode():
        for start in range(0, LENGTH, PIECE):
            model(input_ids=ids[:, start : start + PIECE], use_cache=True, **{name: cache})
    return cache


def held_bytes(cache):
    """Of the storages behind its tensors: a view keeps all of its own."""
    memory = {}
    for layer in cache.layers:
        tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        tensors += [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
        for tensor in tensors:
            if tensor is not None:
                memory[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(memory.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_is_as_large_as_the_estimate_says(family, monkeypatch):
    monkeypatch.setattr(compare, "PIECE_TOKENS", PIECE)
    configuration = AutoConfig.for_model(family, **TINY | FAMILIES[family])
    torch.manual_seed(0)
    shape = inventory_of({**configuration.to_dict(), "model_type": family})
    config = config_from_mapping(
        {
            "model": {"id": "x", "compute_dtype": "float32"},
            "dataset": {"source": "-"},
            "training": {"max_length": LENGTH},
        }
    )
    workload = inference_workload(workload_of_run(shape, config, CPU))

    memory = held_bytes(filled_cache(configuration))

    a_token = 2 * shape.num_key_value_heads * shape.head_dim * 4
    twice = max((min(LENGTH, window - 1 + PIECE) if window else LENGTH for window in shape.kept_tokens), default=0)
    assert cache_bytes(shape, workload) - twice * a_token == memory


def test_the_estimate_knows_the_chats_pieces():
    assert compare.PIECE_TOKENS == batch.PIECE_TOKENS

"""Whether rows are joined or padded: the trainer, the estimate and the exported script agree for every family."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import ModelError
from loratory.engine.export.script.model_facts import read_model_facts
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.architecture import read_attention
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.workload import workload_of_step
from loratory.engine.models.batching import (
    VARLEN_ATTENTION,
    AttentionFacts,
    choose_batching,
    expected_attention,
    takes_varlen_attention,
)
from loratory.engine.models.inventory_cache import remember_inventory
from loratory.engine.models.shape import AttentionSupport
from loratory.engine.training.assembly import assemble
from loratory.engine.training.placement import Placement, choose_precision
from tests.training.tiny_training import CPU, Row

GPU = Device("cuda", 0, "a GPU", 80 << 30, 80 << 30, has_fast_bfloat16=True)
OLD_GPU = Device("cuda", 0, "an old GPU", 16 << 30, 16 << 30, has_fast_bfloat16=False)
TINY: dict[str, Any] = {
    "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 128, "n_positions": 512}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
JOINED, PADDED = "joined", "padded"
# Every family of the catalogue and of published measurements, and one of each reason not to join.
FAMILIES: dict[str, Any] = {
    "llama": ({}, JOINED),
    "mistral": ({"sliding_window": 16}, JOINED),
    "mixtral": (EXPERTS, JOINED),
    "phi3": ({}, JOINED),
    "qwen2": ({}, JOINED),
    "qwen3": ({}, JOINED),
    "qwen3_moe": (EXPERTS, JOINED),
    "gemma3_text": (WINDOWS, JOINED),
    "gpt2": (GPT, JOINED),
    "gpt_bigcode": (GPT, JOINED),
    "gemma2": (WINDOWS, PADDED),  # caps its scores, which no fused kernel does
    "gpt_oss": (EXPERTS | WINDOWS, PADDED),  # sinks
    "qwen2_moe": (EXPERTS | WINDOWS | {"use_sliding_window": True}, PADDED),  # a window in the mask alone
    "phimoe": (EXPERTS | {"sliding_window": 16}, PADDED),
    "doge": ({}, PADDED),  # no flash attention
    "falcon": ({"head_dim": None}, PADDED),  # attention of its own
    "bloom": ({"n_layer": 2, "n_head": 4}, PADDED),  # positions added to the scores
    "jamba": (EXPERTS, PADDED),  # a state next to attention
    "falcon_mamba": ({}, PADDED),
    "minimax": (EXPERTS | {"layer_types": ["linear_attention", "full_attention"] * 2}, PADDED),
    "lfm2": ({"layer_types": ["conv", "full_attention"] * 2}, PADDED),
    "bert": ({}, PADDED),  # sees later tokens
}
LENGTH = 40


def make_config(*, method="none", **sections):
    values = {
        "model": {"id": "a model", "compute_dtype": "float32", **sections.get("model", {})},
        "adapter": {"method": method},
        "dataset": {"source": "rows"},
        "training": {"max_length": LENGTH, "per_device_train_batch_size": 2, **sections.get("training", {})},
    }
    return config_from_mapping(values | {"run": {"devices": "cpu"}})


@pytest.fixture(scope="module")
def tiny_model():
    """Build a model of a family once, with its configuration and its inventory."""
    cache = {}

    def make(family):
        if family not in cache:
            sizes = {name: size for name, size in (TINY | FAMILIES[family][0]).items() if size is not None}
            configuration = AutoConfig.for_model(family, **sizes)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32)
            model.config.use_cache = False
            values = {**model.config.to_dict(), "model_type": family}
            cache[family] = model, values, inventory_of(values)
        return cache[family]

    return make


def batching_of_trainer(model, config):
    rows = [
        Row(ids, ids) for ids in ([random.Random(row).randrange(3, 200) for _ in range(LENGTH)] for row in range(4))
    ]
    placement = Placement(CPU, torch.device("cpu"))
    return assemble(model, config, choose_precision(config, CPU), placement, rows, 0).setup.settings.batching


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("family", FAMILIES)
def test_trainer_estimate_and_script_agree(family, tiny_model, home, tmp_path):
    model, _, shape = tiny_model(family)
    (tmp_path / "config.json").write_text(model.config.to_json_string(use_diff=False))
    config = make_config(model={"id": str(tmp_path)})
    remember_inventory(model.config.to_dict(), shape, home)

    trained = batching_of_trainer(model, config)

    assert trained == FAMILIES[family][1]
    assert workload_of_step(shape, config, CPU).joined == (trained == JOINED)
    assert read_model_facts(config, home, None).batching == ("padded" if trained == PADDED else "joined")


@pytest.mark.parametrize("device", [CPU, GPU, OLD_GPU], ids=["CPU", "GPU", "old GPU"])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_judges_as_the_trainer_with_the_real_model(
    family, flash, packing, device, tiny_model, monkeypatch
):
    model, _, shape = tiny_model(family)
    monkeypatch.setattr("loratory.engine.memory.workload.has_flash_attention", lambda: flash)
    config = make_config(model={"compute_dtype": "auto"}, training={"packing": packing})
    facts = read_attention(model)
    takes_flash = flash and facts.support.has_flash and device is GPU
    # What transformers resolved when the model was built on a machine without flash attention.
    attention = "flash_attention_2" if takes_flash else model.get_correct_attn_implementation(None)
    through = VARLEN_ATTENTION if takes_varlen_attention(facts, attention, config, device) else attention

    estimated = workload_of_step(shape, config, device)

    assert expected_attention(shape.attention_support, config, device, has_flash_package=flash) == attention
    assert estimated.joined == (choose_batching(facts, through, config, device.kind) == JOINED)
    assert (estimated.attention == "flash") or not (takes_flash or (through == VARLEN_ATTENTION and estimated.joined))
    assert AttentionFacts.of_shape(shape) == facts


def test_nothing_is_joined_behind_a_prefix():
    facts = AttentionFacts("llama", (), None, AttentionSupport())

    assert choose_batching(facts, "sdpa", make_config(method="prefix_tuning"), "cpu") == PADDED


def test_packing_a_model_that_cannot_keep_rows_apart_is_refused(tiny_model):
    model, *_ = tiny_model("minimax")

    with pytest.raises(ModelError, match="cannot keep packed rows apart"):
        batching_of_trainer(model, make_config(training={"packing": True}))

"""The estimate against published measurements, and the counts of parameters against PEFT's own."""

import json

import peft
import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config.run import AdapterConfig
from engine.inspector.worker.inventory import inventory_of
from engine.memory.targets import find_targets
from engine.memory.trainable import count_trainable
from engine.models.catalog import find_in_catalog
from engine.training.targets import choose_targets
from tests.benchmarks.published.evaluate import evaluate, main
from tests.benchmarks.published.measurements import read_measurements

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 211,
    "intermediate_size": 96,
}
ARCHITECTURES = {
    "llama": {**SMALL, "num_key_value_heads": 2},
    "mistral": {**SMALL, "num_key_value_heads": 2},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 32},
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 32},
    "phi3": {**SMALL, "num_key_value_heads": 4, "pad_token_id": 0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 211},
    "gpt_neox": SMALL,
    "falcon": {key: value for key, value in SMALL.items() if key != "intermediate_size"},
    "opt": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 211,
        "ffn_dim": 96,
        "word_embed_proj_dim": 64,
    },
    "mixtral": {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4},
    "qwen2_moe": {**SMALL, "num_key_value_heads": 2, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**SMALL, "num_key_value_heads": 2, "num_experts": 4, "head_dim": 16},
}


@pytest.fixture(scope="module")
def evaluation(shared_folder):
    return evaluate(*read_measurements(shared_folder / "reference" / "measured_training_memory.json"))


@pytest.mark.e2e
def test_allocated_memory_of_exact_points_is_predicted_within_two_percent(evaluation):
    exact = [item for item in evaluation.comparisons if item.tier == "A" and item.kind == "allocated"]

    assert len(exact) == 66
    assert sum(abs(item.error) for item in exact) / len(exact) <= 0.02
    assert max(abs(item.error) for item in exact) <= 0.06
    assert evaluation.declined == ()


@pytest.mark.e2e
def test_the_bound_covers_nine_in_ten_of_every_source_and_is_not_far_above(evaluation):
    judged = [score for score in evaluation.scores if score.kind != "allocated" and score.n >= 10]

    assert {score.source for score in judged} == {"fitcheck", "fms-acceleration", "all sources"}
    for score in judged:
        assert score.bound_coverage_percent >= 90, score
        assert score.mean_bound_excess_percent <= 20, score


def test_the_command_prints_one_json_object_and_declines_with_a_reason(shared_folder, tmp_path, capsys):
    points = json.loads((shared_folder / "reference" / "measured_training_memory.json").read_text(encoding="utf-8"))
    strange = {**points[0], "id": "strange", "quantization": "ternary"}
    file = tmp_path / "points.json"
    file.write_text(json.dumps([points[0], strange]), encoding="utf-8")

    assert main([str(file), "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in printed["declined"]] == ["strange"]
    assert printed["declined"][0]["reason"]
    assert all(score["n"] == 1 for score in printed["scores"])


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_trainable_parameters_are_those_that_peft_prints(model_type, rank, capsys):
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    shape = inventory_of(config.to_dict())
    adapter = AdapterConfig(r=rank)
    targets = find_targets(shape, adapter)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    chosen = choose_targets(model, adapter)
    adapted = peft.get_peft_model(model, LoraConfig(r=rank, target_modules=chosen, task_type="CAUSAL_LM"))
    adapted.print_trainable_parameters()
    printed = capsys.readouterr().out

    counts = count_trainable(shape, adapter, targets)

    ours = (
        f"trainable params: {counts.trainable:,d} || all params: {counts.total:,d} || trainable%: {counts.percent:.4f}"
    )
    assert printed.strip() == ours


@pytest.mark.parametrize(("rank", "trainable"), [(16, 16_777_216), (32, 33_554_432)])
def test_the_published_counts_of_llama_2_come_out(rank, trainable):
    entry = find_in_catalog("meta-llama/Llama-2-7b-hf") or find_in_catalog("NousResearch/Llama-2-7b-hf")
    shape = inventory_of(entry.config)
    adapter = AdapterConfig(r=rank, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))

    counts = count_trainable(shape, adapter, find_targets(shape, adapter))

    assert counts.trainable == trainable
    if rank == 32:
        assert counts.total == 6_771_970_048
        assert round(counts.percent, 4) == 0.4955

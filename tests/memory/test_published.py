"""The estimate against published measurements, and the counts of parameters against PEFT's own."""

import json
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from loratory.engine.config.run import AdapterConfig
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.device_need import PROCESS_MARGIN, TensorsAtPeak
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.memory.structure import find_targets
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.training.methods.base import choose_targets
from tests.benchmarks.published.evaluate import (
    Comparison,
    evaluate,
    judge_by_origin,
    main,
    need_in_fixed_segments,
    process_margin,
)
from tests.benchmarks.published.measurements import MeasuredPoint, read_measurements
from tests.benchmarks.published.workloads import shape_of_point, workload_of_point

FURTHER = Path(__file__).parents[1] / "benchmarks/published/further_measurements.json"

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
    return evaluate(read_measurements(shared_folder / "reference" / "measured_training_memory.json"))


@pytest.fixture(scope="module")
def further():
    return evaluate(read_measurements(FURTHER))


@pytest.mark.e2e
def test_allocated_memory_of_exact_points_is_predicted_within_two_percent(evaluation):
    exact = [item for item in evaluation.comparisons if item.tier == "A" and item.kind == "allocated"]

    assert len(exact) == 66
    assert sum(abs(item.error) for item in exact) / len(exact) <= 0.02
    assert max(abs(item.error) for item in exact) <= 0.06
    assert evaluation.refusals == ()


@pytest.mark.e2e
def test_the_derived_bound_covers_nine_in_ten_of_every_source(evaluation, further):
    judgements = judge_by_origin([*evaluation.comparisons, *further.comparisons])

    assert {"fitcheck", "fms-acceleration", "peft"} < {judgement.origin for judgement in judgements}
    for judgement in judgements:
        assert judgement.coverage >= 0.9, judgement
        assert judgement.above <= 0.2, judgement


@pytest.mark.e2e
def test_every_method_of_peft_is_predicted_within_four_percent_and_below_its_bound(further):
    of_peft = [comparison for comparison in further.comparisons if comparison.source == "peft"]

    (refusal,) = further.refusals
    assert refusal.id == "metamathqa-oft-rank32-batch2"  # which turned weights, not inputs
    assert len(of_peft) == 16
    for comparison in of_peft:
        assert abs(comparison.error) <= 0.04, comparison
        assert comparison.bound_bytes >= comparison.measured_bytes, comparison


@pytest.mark.parametrize("method", ["adalora", "oft", "loha", "lokr", "vera", "miss", "prompt_tuning", "p_tuning"])
def test_every_method_that_the_estimate_models_is_read_from_a_measurement(method):
    settings = {"model_id": "meta-llama/Llama-2-7b-hf", "method": method, "lora_r": 32, "batch_size": 1, "seq_len": 64}
    measured = {"measured_kind": "reserved", "measured_value": 1, "measured_unit": "GiB"}
    point = MeasuredPoint.model_validate({"id": "-", "extra": {"num_virtual_tokens": 8}, **settings, **measured})

    workload = workload_of_point(point, shape_of_point(point))

    assert workload.length == (64 + 8 if workload.adapter.traits.virtual_tokens == "inputs" else 64)
    if method == "oft":
        assert workload.adapter.oft_block_size == 4096 // 32
    elif workload.length == 64:
        assert (workload.adapter.init_r if method == "adalora" else workload.adapter.r) == 32


def test_a_bound_below_what_was_measured_is_told_by_its_source():
    def comparison(source, measured, bound):
        return Comparison(id="-", source=source, environment=f"{source}, torch 2", tier="A", kind="process", phase="forward",
            measured_bytes=measured, predicted_bytes=100, bound_bytes=bound)  # fmt: skip

    judgements = {
        judgement.origin: judgement
        for judgement in judge_by_origin([comparison("a", 110, 120), comparison("b", 150, 120)])
    }

    assert (judgements["a"].coverage, judgements["b"].coverage) == (1, 0)


@pytest.mark.parametrize(
    ("torch_version", "may_load_all"), [("2.4.1", True), ("2.4.1+cu124", False), ("2.5.0", False), (None, True)]
)
def test_a_process_may_hold_all_kernels_unless_cuda_loads_them_when_called(torch_version, may_load_all):
    values = {"id": "-", "method": "full", "batch_size": 1, "seq_len": 8, "versions": {"torch": torch_version}}
    point = MeasuredPoint.model_validate(
        {**values, "gpu": "A100", "measured_kind": "process", "measured_value": 1, "measured_unit": "GiB"}
    )

    a100, a10 = (Device("cuda", 0, name, 2**34, 2**34, has_fast_bfloat16=True) for name in ("A100", "NVIDIA A10"))

    margin = process_margin(point, a100)

    assert margin == (1187 * 2**20 if may_load_all else PROCESS_MARGIN)
    assert margin < process_margin(point, a10) or not may_load_all


def test_an_allocator_may_hold_a_block_more_of_the_two_largest_sizes():
    device = Device("cuda", 0, "A100", 10**12, 10**12, has_fast_bfloat16=True)

    tight, wide = (
        need_in_fixed_segments(TensorsAtPeak(10**9), device, 2 * 10**9, spare, 0) for spare in (0, 3 * 10**8)
    )

    assert wide.needed_bytes - tight.needed_bytes == wide.reserved_bound_bytes - tight.reserved_bound_bytes == 3 * 10**8
    assert (wide.expected_bytes, wide.reserved_bytes) == (tight.expected_bytes, tight.reserved_bytes)


def test_the_command_prints_one_json_object_and_declines_with_a_reason(shared_folder, tmp_path, capsys):
    points = json.loads((shared_folder / "reference" / "measured_training_memory.json").read_text(encoding="utf-8"))
    strange = {**points[0], "id": "strange", "quantization": "ternary"}
    file = tmp_path / "points.json"
    file.write_text(json.dumps([points[0], strange]), encoding="utf-8")

    assert main([str(file), "--json"]) == 0

    output = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in output["declined"]] == ["strange"]
    assert output["declined"][0]["reason"]
    assert all(score["n"] == 1 for score in output["scores"])


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
    adapter_model = peft.get_peft_model(model, LoraConfig(r=rank, target_modules=chosen, task_type="CAUSAL_LM"))
    adapter_model.print_trainable_parameters()
    output = capsys.readouterr().out

    counts = count_trainable(shape, adapter, targets)

    ours = (
        f"trainable params: {counts.trainable:,d} || all params: {counts.total:,d} || trainable%: {counts.percent:.4f}"
    )
    assert output.strip() == ours


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

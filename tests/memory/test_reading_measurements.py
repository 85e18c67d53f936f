"""Measurements as other people write them: the same step, whatever words and gaps a file has."""

import json

import pytest

from engine.memory.device_need import cuda_context_bytes, is_hopper
from tests.benchmarks.published.evaluate import compare, evaluate
from tests.benchmarks.published.gpus import GIB, is_before_ampere, memory_of_gpu
from tests.benchmarks.published.measurements import MeasuredPoint, read_measurements
from tests.benchmarks.published.shapes import known_sizes
from tests.benchmarks.published.workloads import device_of_point, shape_of_point, workload_of_point

GIVEN = {
    "id": "one",
    "model_id": "meta-llama/Llama-2-7b-hf",
    "method": "qlora",
    "quantization": "nf4",
    "lora_r": 16,
    "batch_size": 1,
    "seq_len": 512,
    "gpu": "A100 80GB",
    "measured_kind": "max_memory_allocated",
    "measured_value": 7.5,
    "measured_unit": "GiB",
}
REQUIRED = {"id", "method", "batch_size", "seq_len", "measured_kind", "measured_value", "measured_unit"}


def point(**changes):
    return MeasuredPoint.model_validate(GIVEN | changes)


def workload(**changes):
    one = point(**changes)
    return workload_of_point(one, shape_of_point(one))


def test_null_is_what_a_file_leaves_out(tmp_path):
    arch = {
        "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 211,
        **dict.fromkeys(("name", "head_dim", "tie_word_embeddings", "num_experts", "num_experts_per_tok")),
    }  # fmt: skip
    optional = set(MeasuredPoint.model_fields) - REQUIRED - GIVEN.keys()
    nulls = GIVEN | dict.fromkeys(optional) | {"gpu": None, "arch": arch}
    file = tmp_path / "points.json"
    file.write_text(json.dumps([nulls, GIVEN | {"arch": arch, "gpu": ""}]))

    points, unreadable = read_measurements(file)

    assert unreadable == []
    assert points[0] == points[1]
    assert [c.predicted_bytes for c in compare(points[0])] == [c.predicted_bytes for c in compare(points[1])]


def test_an_entry_without_a_name_bears_its_number(tmp_path):
    file = tmp_path / "points.json"
    file.write_text(json.dumps([{key: value for key, value in GIVEN.items() if key != "id"}, {"id": "none"}]))

    points, unreadable = read_measurements(file)

    assert [one.id for one in points] == ["0"]
    assert [(one.id, one.reason) for one in unreadable] == [("none", "method: Field required")]


@pytest.mark.parametrize(
    ("text", "base", "double"),
    [
        ("NF4+DQ", "nf4", True),
        ("bnb-nf4 (double quant)", "nf4", True),
        ("nf4, double_quant=False", "nf4", False),
        ("nf4 without dq", "nf4", False),
        ("4-bit", "nf4", False),
        ("bitsandbytes 4 bit", "nf4", False),
        ("qlora", "nf4", False),
        ("FP4", "fp4", False),
        ("8-bit", "int8", False),
        ("LLM.int8()", "int8", False),
        ("GPTQ-int4", "gptq", False),
        (8, "int8", False),
        (4, "nf4", False),
    ],
)
def test_a_format_has_many_names(text, base, double):
    result = workload(quantization=text)

    assert (result.base, result.double_quant) == (base, double)


@pytest.mark.parametrize("text", ["none", "No", "bf16", "16-bit", False, None, ""])
def test_no_quantization_has_many_names_too(text):
    assert workload(method="lora", quantization=text).base == "dense"


@pytest.mark.parametrize("text", ["awq-int4", "ternary", "hqq 4bit", "fp8"])
def test_a_format_that_is_not_modelled_is_declined_with_its_name(text):
    (declined,) = evaluate([point(quantization=text)]).declined

    assert text in declined.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": {"double_quant": True}},
        {"extra": {"bnb_4bit_use_double_quant": "true"}},
        {"double_quant": True},
    ],
)
def test_double_quantization_may_stand_elsewhere(changes):
    assert workload(**changes).double_quant


def test_who_trains_qlora_has_a_base_of_four_bits():
    assert workload(method="QLoRA", quantization=None).base == "nf4"
    assert workload(method="lora", quantization="none", base_dtype="nf4").base == "nf4"


@pytest.mark.parametrize("text", ["full", "Full fine-tuning", "full_ft", "FFT"])
def test_full_fine_tuning_has_many_names(text):
    result = workload(method=text, quantization="none", trainable_dtype="torch.bfloat16")

    assert not result.trains_adapter
    assert result.precision.weights == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("No", "none"),
        ("off", "none"),
        (None, "none"),
        ("non-reentrant", "non_reentrant"),
        ("use_reentrant=False", "non_reentrant"),
        ("use_reentrant=True", "reentrant"),
        (True, "reentrant"),
    ],
)
def test_checkpointing_has_many_names(given, expected):
    result = workload(grad_checkpointing=given, versions={"transformers": 4.45})

    assert (result.checkpointing, result.reentrant) == (expected != "none", expected == "reentrant")


@pytest.mark.parametrize("text", ["AdamW 8-bit", "adamw_8bit", "adamw_bnb_8bit", "AdamW8bit"])
def test_an_optimizer_of_eight_bits_has_many_names(text):
    assert workload(optimizer=text).optimizer.kind == "adamw_8bit"


def test_targets_may_be_one_text():
    assert workload(target_modules="q_proj, v_proj").adapter.target_modules == ("q_proj", "v_proj")
    assert workload(target_modules="All-Linear").adapter.target_modules == "all-linear"


@pytest.mark.parametrize(
    ("changes", "expands"),
    [
        ({"extra": {"pytorch_cuda_alloc_conf": "expandable_segments:True"}}, True),
        ({"extra": {"expandable_segments": True}}, True),
        ({"extra": {"expandable_segments": False}, "framework": "unsloth 2025.6"}, False),
        ({"framework": "TRL, expandable segments"}, True),
        ({"framework": "unsloth 2025.6"}, True),
        ({"versions": {"torch": "2.6", "alloc": "expandable_segments:True"}}, True),
        ({"framework": "TRL"}, False),
    ],
)
def test_segments_expand_where_someone_asked_for_it(changes, expands):
    one = point(measured_kind="max_memory_reserved", **changes)

    assert one.expands_segments == expands
    (reserved,), (tensors,) = compare(one), compare(point(**changes))
    # What expands wastes a small share that is the same for all steps; fixed segments are simulated.
    assert (reserved.predicted_bytes == round(1.02 * tensors.predicted_bytes)) == expands


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4),
        ("A100 80GB", 79.2),
        ("NVIDIA A10G", 22.0),
        ("L4", 22.05),
        ("NVIDIA H100 80GB HBM3", 79.2),
        ("TeslaT4", 14.56),
        ("V100-SXM2-16GB", 15.77),
        ("RTX4090", 23.5),
        ("NVIDIA GeForce RTX 3080 Ti", 15.7),
        ("a card of 12 GB", 11.88),
        ("a card", None),
    ],
)
def test_a_gpus_name_tells_its_memory(name, gib):
    result = memory_of_gpu(name)

    assert result == (None if gib is None else pytest.approx(gib * GIB, rel=1e-6))


def test_a_part_of_a_name_is_not_the_name():
    assert not is_before_ampere("RTX 4080")
    assert is_before_ampere("Quadro RTX 6000")
    assert is_hopper("NVIDIA H200")
    assert not is_hopper("L40S")
    assert cuda_context_bytes("NVIDIA A10") < cuda_context_bytes("NVIDIA A100")


def test_a_device_is_never_smaller_than_what_was_measured_on_it():
    believed = device_of_point(point(gpu="L4", measured_value=20))
    contradicted = device_of_point(point(gpu="L4", measured_value=30))
    unknown = device_of_point(point(gpu="some card"))

    assert believed.total_bytes == memory_of_gpu("L4")
    assert contradicted.total_bytes == unknown.total_bytes > 300 * GIB


def test_what_is_said_about_a_measurement_changes_no_prediction():
    plain = compare(point(framework="TRL SFTTrainer", versions={"trl": "0.11"}))
    noted = compare(
        point(
            framework="TRL SFTTrainer",
            versions={"trl": "0.11"},
            trust_note="custom prepare, without fp32 upcasts, fsdp",
        )
    )

    assert [one.predicted_bytes for one in noted] == [one.predicted_bytes for one in plain]


def test_a_larger_model_is_not_taken_for_the_smallest_of_its_family():
    assert known_sizes("openai-community/gpt2").num_hidden_layers == 12
    assert known_sizes("openai-community/gpt2-xl") is None
    assert known_sizes("distilgpt2") is None


@pytest.mark.parametrize(
    "model_id",
    [
        "NousResearch/Llama-2-7b-hf",
        "unsloth/llama-2-7b-bnb-4bit",
        "TheBloke/Llama-2-7B-Chat-GPTQ",
        "NousResearch/Llama-2-7b-chat-hf",
    ],
)
def test_who_publishes_a_model_again_changes_no_size(model_id):
    assert known_sizes(model_id) == known_sizes("meta-llama/Llama-2-7b-hf")


def test_scales_of_a_gptq_checkpoint_are_read_or_go_by_its_size():
    sizes = {"quantization": "gptq", "model_id": "NousResearch/Llama-2-7b-hf"}

    assert workload(**sizes).gptq_group_size == 128
    assert workload(**sizes, extra={"group_size": 32}).gptq_group_size == 32
    assert workload(quantization="gptq", model_id="NousResearch/Llama-2-70b-hf").gptq_group_size == -1

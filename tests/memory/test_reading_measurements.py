"""Published measurements: what their words mean, and the models and GPUs that they name."""

import json

import pytest

from loratory.engine.hardware.device import Device
from loratory.engine.memory.device_need import cuda_context_bytes, is_hopper
from tests.benchmarks.published.evaluate import compare, evaluate
from tests.benchmarks.published.gpus import GIB, is_before_ampere, memory_of_gpu
from tests.benchmarks.published.measurements import MeasuredPoint, read_measurements
from tests.benchmarks.published.shapes import known_sizes

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


def test_null_is_what_a_file_leaves_out(tmp_path):
    arch = {
        "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 211,
        **dict.fromkeys(("name", "head_dim", "tie_word_embeddings")),
    }  # fmt: skip
    optional = set(MeasuredPoint.model_fields) - REQUIRED - GIVEN.keys()
    nulls = GIVEN | dict.fromkeys(optional) | {"arch": arch}
    file = tmp_path / "points.json"
    file.write_text(json.dumps([nulls, GIVEN | {"arch": arch}]))

    points = read_measurements(file)

    assert points[0] == points[1]
    assert [c.predicted_bytes for c in compare(points[0])] == [c.predicted_bytes for c in compare(points[1])]


@pytest.mark.parametrize("changes", [{"quantization": "ternary"}, {"method": "bitfit"}])
def test_what_is_not_modelled_is_declined_with_its_name(changes):
    (refusal,) = evaluate([point(**changes)]).refusals

    assert next(iter(changes.values())) in refusal.reason


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("A100-SXM4", 79.2),
        ("NVIDIA A100-SXM4-40GB", 39.4),
        ("NVIDIA H100 80GB HBM3", 79.2),
        ("TeslaT4", 14.56),
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


def gpu(name, capability=None):
    return Device("cuda", 0, name, 24 * GIB, 24 * GIB, has_fast_bfloat16=True, capability=capability)


@pytest.mark.parametrize(
    ("name", "capability"),
    [("NVIDIA H200", (9, 0)), ("A100-SXM4", (8, 0)), ("L40S", (8, 9)), ("TeslaT4", (7, 5)), ("a card", (8, 6))],
)
def test_a_generation_that_the_driver_does_not_report_is_known_by_the_name(name, capability):
    by_name, by_capability = gpu(name), gpu("another card", capability)

    assert is_hopper(by_name) == is_hopper(by_capability) == (capability == (9, 0))
    assert cuda_context_bytes(by_name) == cuda_context_bytes(by_capability)


def test_a_context_grows_with_the_multiprocessors():
    contexts = [cuda_context_bytes(gpu("a card", capability)) for capability in ((7, 5), (8, 6), (8, 0))]

    assert contexts == sorted(set(contexts))
    assert cuda_context_bytes(gpu("V100", (7, 0))) == contexts[1]


@pytest.mark.parametrize(
    "model_id",
    [
        "NousResearch/Llama-2-7b-hf",
        "unsloth/llama-2-7b-bnb-4bit",
        "TheBloke/Llama-2-7B-GPTQ",
        "TheBloke/Llama-2-7B-Chat-GPTQ",
        "NousResearch/Llama-2-7b-chat-hf",
    ],
)
def test_who_publishes_a_model_again_changes_no_size(model_id):
    assert known_sizes(model_id) == known_sizes("meta-llama/Llama-2-7b-hf")

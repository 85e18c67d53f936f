"""On a CPU the process counts: what it holds besides tensors is explained, with products that are compiled for each size of a pass."""

import dataclasses

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.device_need import compiled_products_bytes
from loratory.engine.memory.estimate import GIB, estimate_memory
from loratory.engine.models.catalog import find_in_catalog

CPU = Device("cpu", 0, "a CPU", 64 * GIB, 64 * GIB, has_fast_bfloat16=True, cores=2)
LLAMA = inventory_of(find_in_catalog("meta-llama/Llama-2-7b-hf").config)
SMOLLM = inventory_of(find_in_catalog("HuggingFaceTB/SmolLM2-135M-Instruct").config)
MIB = 2**20


def estimate(quantization, max_length):
    values = {"model": {"id": "m", "quantization": quantization}, "training": {"max_length": max_length}}
    return estimate_memory(LLAMA, config_from_mapping({**values, "dataset": {"source": "-"}}), CPU)


def test_qlora_needs_less_than_lora_because_the_weight_files_are_left():
    lora, qlora = estimate("none", 1024), estimate("nf4", 1024)

    assert qlora.expected_bytes < lora.expected_bytes - 8 * GIB
    assert qlora.components_bytes["Python and libraries"] < 3 * GIB


@pytest.mark.parametrize(
    ("quantization", "length", "sentence"),
    [
        ("none", 1024, "are held between tensors without being used"),
        ("nf4", 128, "12.1 GiB of it are pages of the weight files"),
    ],
)
def test_one_line_reports_what_the_process_holds_besides_tensors(quantization, length, sentence):
    (note,) = estimate(quantization, length).notes

    assert sentence in note


def test_a_peak_before_the_first_step_is_called_by_its_parts():
    loading, in_a_step = estimate("nf4", 128), estimate("nf4", 1024)

    assert loading.phase_words == "loading of the weights, before the first step"
    assert [part.key for part in loading.components] == ["weights", "unquantized", "files", "runtime", "margin"]
    assert loading.components_bytes["Weight files"] > 12 * GIB
    assert loading.components_bytes["Python and libraries"] < 1 * GIB
    assert sum(part.bytes for part in loading.components) == loading.needed_bytes
    assert "files" not in [part.key for part in in_a_step.components]


def expected_bytes(steps, device=CPU, **model):
    training = {"max_steps": steps, "gradient_accumulation_steps": 1}
    sections = {"model": {"id": "m", **model}, "dataset": {"source": "-"}, "training": training}
    return estimate_memory(SMOLLM, config_from_mapping(sections), device).expected_bytes


@pytest.mark.parametrize("model", [{}, {"quantization": "nf4"}, {"compute_dtype": "float16"}])
def test_a_run_of_many_sizes_needs_more_within_a_bound(model):
    single, several, endless = (expected_bytes(steps, **model) for steps in (1, 3, -1))

    assert 20 * MIB < several - single <= endless - single < 200 * MIB
    assert expected_bytes(10**6, **model) == endless


def test_products_that_are_not_compiled_add_nothing():
    gpu = dataclasses.replace(CPU, kind="cuda", name="NVIDIA A100")
    apple = dataclasses.replace(CPU, kind="mps")
    for device, model in ((CPU, {"compute_dtype": "float32"}), (gpu, {}), (apple, {})):
        assert expected_bytes(1, device, **model) == expected_bytes(-1, device, **model)


def test_the_first_size_is_part_of_the_process_itself():
    assert compiled_products_bytes(1) == 0

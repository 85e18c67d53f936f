"""On a CPU, 16-bit products are compiled for each size of a pass and kept: a run of many sizes is expected to need more."""

import dataclasses

import pytest

from engine.config.load import config_from_mapping
from engine.hardware.device import Device
from engine.inspector.worker.inventory import inventory_of
from engine.memory.device_need import compiled_products_bytes
from engine.memory.estimate import estimate_memory
from engine.models.catalog import find_in_catalog

GIB, MIB = 2**30, 2**20
CPU = Device("cpu", 0, "a processor", 80 * GIB, 80 * GIB, has_fast_bfloat16=True)


@pytest.fixture(scope="module")
def shape():
    return inventory_of(find_in_catalog("HuggingFaceTB/SmolLM2-135M-Instruct").config)


def expected_bytes(shape, steps, device=CPU, **model):
    training = {"max_steps": steps, "gradient_accumulation_steps": 1}
    sections = {"model": {"id": "m", **model}, "dataset": {"source": "-"}, "training": training}
    return estimate_memory(shape, config_from_mapping(sections), device).expected_bytes


@pytest.mark.parametrize("model", [{}, {"quantization": "nf4"}, {"compute_dtype": "float16"}])
def test_a_run_of_many_sizes_needs_more_within_a_bound(shape, model):
    one, several, endless = (expected_bytes(shape, steps, **model) for steps in (1, 3, -1))

    assert 20 * MIB < several - one <= endless - one < 200 * MIB
    assert expected_bytes(shape, 10**6, **model) == endless


def test_products_that_are_not_compiled_add_nothing(shape):
    gpu = dataclasses.replace(CPU, kind="cuda", name="NVIDIA A100")
    apple = dataclasses.replace(CPU, kind="mps")
    for device, model in ((CPU, {"compute_dtype": "float32"}), (gpu, {}), (apple, {})):
        assert expected_bytes(shape, 1, device, **model) == expected_bytes(shape, -1, device, **model)


def test_the_first_size_is_part_of_the_process_itself():
    assert compiled_products_bytes(1) == 0

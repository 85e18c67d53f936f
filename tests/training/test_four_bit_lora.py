"""LoRA layers on four-bit weights, computed in one function: PEFT's outputs and gradients."""

import copy

import bitsandbytes
import pytest
import torch

from engine.training.ops.lora_linear import fuse_lora, lora_linears
from engine.training.ops.products import FrozenWeights
from tests.training.lora_layers import WIDTH, adapt, answer, groups, quantize_layers, require_equal


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_four_bit_layers_give_what_pefts_give(dtype, double_quant):
    model, x = quantize_layers(adapt(), dtype, double_quant=double_quant), torch.randn(2, 5, WIDTH, dtype=dtype)
    expected = answer(copy.deepcopy(model), x)
    fuse_lora(model)
    with lora_linears(model).observing(), torch.no_grad():
        model(x)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.5}

    assert groups(model) == [1, 3]
    with lora_linears(model).step():
        require_equal(answer(model, x), expected, **tolerance)


def test_one_buffer_serves_the_weights_of_a_device(monkeypatch):
    """On CUDA bitsandbytes writes into it; here its function is asked with a buffer all the same."""
    requests: list[int | None] = []

    def dequantize(packed, state, out=None):
        result = original(packed, state)
        requests.append(None if out is None else out.data_ptr())
        return result if out is None else out.copy_(result)

    original = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", dequantize)
    model = quantize_layers(adapt(), torch.float32, double_quant=True)
    weights, bases = FrozenWeights(), [getattr(model.base_model.model, name).base_layer for name in "qkv"]
    expected = [weights.of(base, torch.float32).clone() for base in bases]
    assert requests == [None] * 3  # not on a CPU, whose kernel takes none
    monkeypatch.setattr(FrozenWeights, "_writes_into", lambda *_: True)

    for base, matrix in zip(bases, expected, strict=True):
        assert torch.equal(weights.of(base, torch.float32), matrix)
    assert len(set(requests[3:])) == 1

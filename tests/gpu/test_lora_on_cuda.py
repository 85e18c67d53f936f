"""LoRA layers as one function on CUDA: as PEFT's in 16 bits, on 4-bit weights, and without waiting for the GPU."""

import copy
import math

import pytest
import torch
from transformers import TrainerCallback

from loratory.engine.training.ops import products
from loratory.engine.training.ops.lora_linear import fuse_lora, lora_linears
from tests.gpu.cuda_training import ROWS, auto_dtype, cuda_placement, train_on_gpu
from tests.training.lora_layers import WIDTH, adapt, answer, quantize_layers, require_as_near
from tests.training.tiny_training import make_config, make_rows, make_training, train_tiny

pytestmark = pytest.mark.gpu


def with_dtype(model, dtype):
    for module in model.modules():
        if type(module) is torch.nn.Linear and not module.weight.requires_grad:
            module.to(dtype)
    return model.cuda()


@pytest.mark.parametrize("rows", [1, 3, 129])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_as_near_to_float32_as_pefts_are(dtype, rows, cuda):
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not multiply bfloat16")
    wide = adapt()
    x = torch.randn(rows, WIDTH)
    expected = answer(wide, x)
    model = with_dtype(copy.deepcopy(wide), dtype)
    with torch.autocast("cuda", dtype=dtype):
        of_peft = answer(copy.deepcopy(model), x.cuda().to(dtype))
    fuse_lora(model)
    with lora_linears(model).observing(), torch.no_grad():
        model(x.cuda().to(dtype))
    with lora_linears(model).step():
        got = answer(model, x.cuda().to(dtype))

    require_as_near(got, of_peft, expected)


@pytest.mark.parametrize("few_rows", [0, 1536], ids=["written out", "multiplied as they are"])
def test_four_bit_layers_give_what_pefts_give(few_rows, cuda, monkeypatch):
    monkeypatch.setattr(products, "_FEW_ROWS", few_rows)
    model = quantize_layers(adapt(), torch.float16, double_quant=True).cuda()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float16, device=cuda)
    with torch.autocast("cuda", dtype=torch.float16):
        expected = answer(copy.deepcopy(model), x)
    fuse_lora(model)
    with lora_linears(model).step():
        got = answer(model, x)

    torch.testing.assert_close(got[0], expected[0], rtol=0.02, atol=0.02)
    for name, gradient in got[1].items():
        assert (gradient - expected[1][name]).float().norm() < 0.05 * expected[1][name].float().norm() + 1e-3, name


def test_products_of_a_gpu_come_in_float32_at_once(cuda):
    left, right = (torch.randn(64, 64, device=cuda).to(torch.float16) for _ in range(2))

    assert products._answers_in_float32(left.device, left.dtype)
    product = products.wide_product(left.t(), right, torch.float32)
    torch.testing.assert_close(product, left.float().t() @ right.float(), rtol=1e-3, atol=1e-2)


class Strict(TrainerCallback):
    """Makes every wait for the GPU an error from the second step to the one before the last."""

    def __init__(self, last):
        self._last = last

    def on_step_begin(self, args, state, control, **_):
        torch.cuda.set_sync_debug_mode("error" if 0 < state.global_step < self._last - 1 else "default")

    def on_step_end(self, args, state, control, **_):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_step_that_is_not_logged_does_not_wait(quantization, tiny_model_folder, tmp_path):
    sections = auto_dtype(
        model={"quantization": quantization}, training={"max_steps": 6, "logging_steps": 100, "max_length": 64}
    )
    config = make_config(tiny_model_folder, **sections)
    training = make_training(config, make_rows(24), tmp_path, callbacks=(Strict(6),), placement=cuda_placement())
    try:
        training.trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert training.trainer.state.global_step == 6


@pytest.mark.parametrize("left_out", ["fused_lora", "shared_inputs"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_losses_are_the_same_without(left_out, quantization, tiny_model_folder, tmp_path, monkeypatch):
    sections = auto_dtype(model={"quantization": quantization}, training={"max_steps": 6, "max_length": 64})
    fast = train_on_gpu(tiny_model_folder, tmp_path / "fast", ROWS, **sections)
    monkeypatch.setenv("LORATORY_WITHOUT", left_out)
    plain = train_on_gpu(tiny_model_folder, tmp_path / "plain", ROWS, **sections)

    assert fast.losses == pytest.approx(plain.losses, rel=0.01)
    assert all(math.isfinite(loss) for loss in fast.losses)


def test_merged_passes_have_the_same_losses(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, **auto_dtype(training={"gradient_accumulation_steps": 4, "max_steps": 3}))
    apart = train_tiny(config, make_rows(16), tmp_path / "apart", placement=cuda_placement())
    merged = train_tiny(config, make_rows(16), tmp_path / "merged", placement=cuda_placement(), merged=4)

    assert merged.losses == pytest.approx(apart.losses, rel=0.01)

"""Optimizers that only CUDA has: they hold their state as they promise, and a checkpoint brings it back."""

import pytest
import torch

from engine.training import state_files
from tests.gpu.cuda_training import auto_dtype, cuda_placement
from tests.training.tiny_training import make_config, make_rows, make_training

pytestmark = pytest.mark.gpu

# bitsandbytes keeps tensors below 4,096 numbers at 32 bits; at rank 64, LoRA's matrices of the tiny model have that many.
ADAPTER = {"r": 64, "lora_alpha": 64}


def train(folder, tmp_path, optim, steps=4):
    sections = auto_dtype(adapter=ADAPTER, training={"optim": optim, "max_steps": steps})
    config = make_config(folder, **sections)
    training = make_training(config, make_rows(16), tmp_path / optim, placement=cuda_placement())
    training.trainer.train()
    return training


def states_of(training):
    optimizer = training.trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    return [state for state in optimizer.state.values() if state]


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_hold_bytes(optim, tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, optim)

    dtypes = {state["state1"].dtype for state in states_of(training)}
    assert torch.uint8 in dtypes
    assert training.losses[-1] < training.losses[0]


def test_a_paged_optimizer_may_leave_the_gpu(tiny_model_folder, tmp_path):
    """Paged memory is CUDA's managed memory: bitsandbytes marks such tensors, which PyTorch's allocator never sees."""
    paged = train(tiny_model_folder, tmp_path, "paged_adamw_32bit")

    assert any(getattr(state["state1"], "is_paged", False) for state in states_of(paged))


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"])
def test_the_state_of_an_optimizer_survives_a_checkpoint(optim, tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, optim)
    path = tmp_path / "optimizer.safetensors"
    before = [{k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)} for s in states_of(training)]

    state_files.save_optimizer(training.trainer.optimizer, path)
    state_files.load_optimizer(training.trainer.optimizer, path)

    for was, now in zip(before, states_of(training), strict=True):
        for name, tensor in was.items():
            assert torch.equal(now[name].cpu(), tensor.cpu()), name

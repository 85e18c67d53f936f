"""Optimizers that only CUDA has: they hold their state as they promise, and a checkpoint brings it back."""

import pytest
import torch

from loratory.engine.training.checkpoints import state_files
from tests.gpu.cuda_training import auto_dtype, train_on_gpu
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import make_rows
from tests.training.worker_runs import data_of_events

pytestmark = pytest.mark.gpu

# bitsandbytes keeps tensors below 4,096 numbers at 32 bits; at rank 64, LoRA's matrices of the tiny model have that many.
ADAPTER = {"r": 64, "lora_alpha": 64}


# It pages tensors from 100,000 numbers on: at rank 256 and 512 features, LoRA's matrices have 131,072.
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
WIDE_ADAPTER = {"r": 256, "lora_alpha": 256}


def train(folder, tmp_path, optim, adapter=ADAPTER):
    sections = auto_dtype(adapter=adapter, training={"optim": optim, "max_steps": 4})
    return train_on_gpu(folder, tmp_path / optim, make_rows(16), **sections)


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


def test_adamw_is_fused(tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, "adamw_torch")

    assert training.trainer.optimizer.defaults["fused"]


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_a_paged_optimizer_may_leave_the_gpu_also_after_a_checkpoint(optim, tmp_path, show):
    """Paged memory is CUDA's managed memory: bitsandbytes marks such tensors, which PyTorch's allocator never sees."""
    folder = make_tiny_model(tmp_path / "model", **WIDE)
    training = train(folder, tmp_path, optim, WIDE_ADAPTER)
    path = tmp_path / "optimizer.safetensors"
    paged = [state for state in states_of(training) if getattr(state["state1"], "is_paged", False)]
    before = [state["state1"].clone() for state in paged]
    assert paged

    state_files.save_nested(training.trainer.optimizer.state_dict(), path)
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    state_files.load_optimizer(training.trainer.optimizer, path)

    state_bytes = sum(tensor.nbytes for tensor in before) * 2
    extra_bytes = torch.cuda.max_memory_allocated() - allocated
    show(paged_tensors=len(paged) * 2, paged_bytes=state_bytes, beside_bytes=extra_bytes)
    again = [state for state in states_of(training) if getattr(state["state1"], "is_paged", False)]
    assert len(again) == len(paged)
    assert extra_bytes < state_bytes / 4
    for was, now in zip(before, again, strict=True):
        assert torch.equal(now["state1"].cpu(), was.cpu())


@pytest.mark.e2e
def test_a_killed_run_with_a_paged_optimizer_resumes_as_if_nothing_had_happened(resumed_run):
    whole, run, _ = resumed_run(adapter=WIDE_ADAPTER, training={"optim": "paged_adamw_32bit"}, run={"devices": "auto"})

    peaks = [data_of_events(run_of_pair, "memory")[-1].peak_allocated_bytes for run_of_pair in (whole, run)]
    assert peaks[1] <= peaks[0] * 1.05


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"])
def test_the_state_of_an_optimizer_survives_a_checkpoint(optim, tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, optim)
    path = tmp_path / "optimizer.safetensors"
    before = [{k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)} for s in states_of(training)]

    state_files.save_nested(training.trainer.optimizer.state_dict(), path)
    state_files.load_optimizer(training.trainer.optimizer, path)

    for was, now in zip(before, states_of(training), strict=True):
        for name, tensor in was.items():
            assert torch.equal(now[name].cpu(), tensor.cpu()), name

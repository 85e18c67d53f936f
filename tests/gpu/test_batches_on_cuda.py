"""Prefetched batches are in pinned memory, arrive whole, and change no loss."""

from dataclasses import replace

import pytest
import torch

from loratory.engine.training.batching.batches import join, pad
from tests.gpu.cuda_training import cuda_placement
from tests.training.tiny_training import make_config, make_rows, make_training

pytestmark = pytest.mark.gpu

ROWS = make_rows(48)
RUNS_ALIKE = 1e-4  # of the losses in float32; kernels add up in an order of their own


@pytest.mark.parametrize("makes", [lambda rows: pad(rows, 0), join], ids=["padded", "joined"])
def test_a_pinned_pass_arrives_whole_without_waiting(makes, cuda):
    batch = makes(ROWS)

    pinned = batch.pinned()
    there = pinned.to(cuda)

    tensors = [value for value in pinned.inputs.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.is_pinned() for tensor in (*tensors, *pinned.trained))
    torch.cuda.synchronize()
    for name, value in batch.inputs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(there.inputs[name].cpu(), value), name
    assert torch.equal(there.trained.positions.cpu(), batch.trained.positions)
    assert torch.equal(there.trained.targets.cpu(), batch.trained.targets)


def test_prefetched_batches_have_the_same_losses(tiny_model_folder, tmp_path):
    losses, held_out = {}, {}
    for prefetches in (False, True):
        config = make_config(tiny_model_folder, adapter={"lora_dropout": 0.1}, training={"max_steps": 12})
        training = make_training(
            config, ROWS, tmp_path / str(prefetches), held_out=make_rows(8, seed=1), placement=cuda_placement()
        )
        assert training.trainer._setup.prefetches
        training.trainer._setup = replace(training.trainer._setup, prefetches=prefetches)
        training.trainer.train()
        losses[prefetches] = training.losses
        held_out[prefetches] = training.trainer.measure_held_out().eval_loss

    assert losses[True] == pytest.approx(losses[False], rel=RUNS_ALIKE)
    assert held_out[True] == pytest.approx(held_out[False], rel=RUNS_ALIKE)

"""Batches are copied from pinned memory and arrive whole."""

import pytest
import torch

from loratory.engine.training.batching.batches import join, pad
from tests.training.tiny_training import make_rows

pytestmark = pytest.mark.gpu

ROWS = make_rows(48)


@pytest.mark.parametrize("makes", [lambda rows: pad(rows, 0), join], ids=["padded", "joined"])
def test_a_pass_arrives_whole(makes, cuda):
    batch = makes(ROWS)

    there = batch.to(cuda)

    torch.cuda.synchronize()
    for name, value in batch.inputs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(there.inputs[name].cpu(), value), name
    assert torch.equal(there.trained.positions.cpu(), batch.trained.positions)
    assert torch.equal(there.trained.targets.cpu(), batch.trained.targets)

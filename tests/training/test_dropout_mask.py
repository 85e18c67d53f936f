"""Masks that are drawn from a seed."""

import pytest
import torch

from engine.training.ops.products import DropoutMask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 3), (1, 1), (64, 96)])
def test_elements_stay_exactly_or_become_zero(dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    mask = DropoutMask.draw(x, 0.5)

    masked = mask.apply(x)

    assert masked.shape == x.shape
    assert torch.equal(masked, torch.where(masked == 0, torch.zeros_like(x), x))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_the_configured_share_is_dropped(p):
    torch.manual_seed(1)
    x = torch.ones(400, 1000)

    dropped = 1.0 - float(DropoutMask.draw(x, p).apply(x).mean())

    assert dropped == pytest.approx(p, abs=0.004)


def test_a_mask_applies_the_same_way_twice():
    x = torch.ones(50, 40)
    mask = DropoutMask.draw(x, 0.5)

    assert torch.equal(mask.apply(x), mask.apply(x))


def test_masks_follow_torchs_generator():
    x = torch.ones(50, 40)
    torch.manual_seed(3)
    first, second = DropoutMask.draw(x, 0.5), DropoutMask.draw(x, 0.5)
    torch.manual_seed(3)
    again = DropoutMask.draw(x, 0.5)

    assert first == again
    assert first != second


def test_zeros_of_the_input_are_not_taken_for_dropped_ones():
    """The backward pass masks gradients with the mask and not with the zeros of the forward pass."""
    mask = DropoutMask.draw(torch.zeros(100, 8), 0.25)

    assert 0.6 < float(mask.apply(torch.ones(100, 8)).mean()) < 0.9

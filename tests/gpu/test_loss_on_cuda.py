"""The loss on CUDA: the same number as on a CPU, and never the logits of all positions."""

import pytest
import torch
from torch.nn import functional

from engine.training.ops.loss import summed_loss

pytestmark = pytest.mark.gpu

TOKENS, HIDDEN, VOCABULARY = 8192, 256, 128_000
ALL_LOGITS_BYTES = TOKENS * VOCABULARY * 4


def make_head(*, trained):
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, device="cuda", dtype=torch.bfloat16)
    return head.requires_grad_(trained)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_all_logits_are_never_there_at_once(trained, show):
    head = make_head(trained=trained)
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    summed_loss(hidden, targets, head).backward()

    torch.cuda.synchronize()
    beside = torch.cuda.max_memory_allocated() - before
    show(peak_beside_bytes=beside, all_logits_bytes=ALL_LOGITS_BYTES)
    assert hidden.grad is not None
    assert beside < ALL_LOGITS_BYTES / 3


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_loss_and_gradient_are_those_of_the_whole_logits_in_float32(trained):
    head = make_head(trained=trained).float()
    hidden = torch.randn(64, HIDDEN, device="cuda", requires_grad=True)
    again = hidden.detach().clone().requires_grad_()
    targets = torch.randint(VOCABULARY, (64,), device="cuda")
    expected = functional.cross_entropy(functional.linear(again, head.weight), targets, reduction="sum")
    expected.backward()

    got = summed_loss(hidden, targets, head)
    got.backward()

    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(hidden.grad, again.grad, rtol=1e-3, atol=1e-4)

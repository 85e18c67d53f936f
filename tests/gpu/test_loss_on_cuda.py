"""The loss on CUDA: the same number as on a CPU, and never the logits of all positions; with the Triton kernel and without."""

import pytest
import torch
from torch.nn import functional

from loratory.engine.training.ops.loss import LogitTransform, loss_of_each

pytestmark = pytest.mark.gpu

TOKENS, HIDDEN, VOCABULARY = 8192, 256, 128_000
ALL_LOGITS_BYTES = TOKENS * VOCABULARY * 4

KERNELS = pytest.mark.parametrize("fused", [False, True], ids=["reference", "fused"])
HEADS = pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])


@pytest.fixture(autouse=True)
def needs_triton(request):
    if "fused" in request.fixturenames and request.getfixturevalue("fused"):
        pytest.importorskip("triton")


def make_head(*, trained):
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, device="cuda", dtype=torch.bfloat16)
    return head.requires_grad_(trained)


@KERNELS
@HEADS
def test_all_logits_are_never_there_at_once(trained, fused, show):
    head = make_head(trained=trained)
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start_event.record()
    loss_of_each(hidden, targets, head, LogitTransform(fused=fused)).sum().backward()
    end_event.record()

    torch.cuda.synchronize()
    extra_bytes = torch.cuda.max_memory_allocated() - before
    show(
        peak_beside_bytes=extra_bytes,
        milliseconds=start_event.elapsed_time(end_event),
        all_logits_bytes=ALL_LOGITS_BYTES,
    )
    assert hidden.grad is not None
    assert extra_bytes < ALL_LOGITS_BYTES / 3


@KERNELS
@HEADS
def test_loss_and_gradient_are_those_of_the_whole_logits_in_float32(trained, fused):
    head = make_head(trained=trained).float()
    hidden = torch.randn(64, HIDDEN, device="cuda", requires_grad=True)
    again = hidden.detach().clone().requires_grad_()
    targets = torch.randint(VOCABULARY, (64,), device="cuda")
    expected = functional.cross_entropy(functional.linear(again, head.weight), targets, reduction="sum")
    expected.backward()

    got = loss_of_each(hidden, targets, head, LogitTransform(fused=fused)).sum()
    got.backward()

    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(hidden.grad, again.grad, rtol=1e-3, atol=1e-4)


@HEADS
def test_preferences_get_the_same_loss_of_each_position(trained):
    pytest.importorskip("triton")
    head = make_head(trained=trained)
    hidden = torch.randn(64, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets, weights = torch.randint(VOCABULARY, (64,), device="cuda"), torch.rand(64, device="cuda")
    matches = []
    for fused in (False, True):
        losses = loss_of_each(hidden, targets, head, LogitTransform(fused=fused))
        matches.append((losses.detach(), *torch.autograd.grad((losses * weights).sum(), hidden)))

    torch.testing.assert_close(matches[1][0], matches[0][0], rtol=1e-4, atol=1e-3)
    assert (matches[1][1] - matches[0][1]).norm() < 0.02 * matches[0][1].norm()

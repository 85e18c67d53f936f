"""The Triton kernel gives the losses and gradients of the reference, in Triton's interpreter.

`test_triton_loss` runs these in a process of their own: Triton must know of its interpreter before anything imports it.
"""

import pytest
import torch

from loratory.engine.training.ops import loss as loss_module
from loratory.engine.training.ops.loss import LogitTransform, loss_of_each

WIDTH = 24
TRANSFORMS = [LogitTransform(), LogitTransform(0.25), LogitTransform(cap=3.0), LogitTransform(2.0, 5.0)]
TRANSFORM_NAMES = ["plain", "scaled", "capped", "both"]


PLAIN = LogitTransform()


def fused_loss(transform=PLAIN):
    return LogitTransform(transform.scale, transform.cap, fused=True)


def make(positions, vocabulary, dtype, *, trained=False, bias=False):
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, vocabulary, bias=bias).to(dtype).requires_grad_(trained)
    head.weight.data *= 8
    hidden = torch.randn(positions, WIDTH).to(dtype).requires_grad_()
    return head, hidden, torch.randint(vocabulary, (positions,))


def gradients(loss, hidden, head):
    return torch.autograd.grad(loss, [hidden, *(p for p in head.parameters() if p.requires_grad)])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=TRANSFORM_NAMES)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.float32, 1), (torch.float32, 131), (torch.bfloat16, 17_003)])
def test_losses_and_gradients_are_those_of_the_reference(transform, trained, dtype, vocabulary, monkeypatch):
    """17,003 words are more than one block, and not a multiple of anything; a chunk has two positions."""
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_BYTES_CPU", 2 * vocabulary * 4)
    head, hidden, targets = make(5, vocabulary, dtype, trained=trained, bias=vocabulary == 131)
    expected = loss_of_each(hidden, targets, head, transform).sum()
    expected_gradients = gradients(expected / 7, hidden, head)

    got = loss_of_each(hidden, targets, head, fused_loss(transform)).sum()
    got_gradients = gradients(got / 7, hidden, head)

    assert got.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    tolerance = 1e-5 if dtype is torch.float32 else 0.01  # bfloat16 rounds each by up to 0.004
    for own, reference in zip(got_gradients, expected_gradients, strict=True):
        assert (own - reference).norm() <= tolerance * reference.norm() + 1e-6


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_each_position_has_its_own_loss_and_weight(trained):
    head, hidden, targets = make(6, 131, torch.float32, trained=trained)
    weights = torch.rand(6)
    expected = loss_of_each(hidden, targets, head)
    got = loss_of_each(hidden, targets, head, fused_loss())

    torch.testing.assert_close(got, expected)
    for own, reference in zip(
        gradients((got * weights).sum(), hidden, head),
        gradients((expected * weights).sum(), hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_an_ignored_target_has_no_loss_and_no_gradient(trained):
    head, hidden, targets = make(4, 131, torch.float32, trained=trained)
    targets[1] = -100
    losses = loss_of_each(hidden, targets, head, fused_loss())
    (gradient, *_) = gradients(losses.sum(), hidden, head)

    assert losses[1] == 0
    assert not gradient[1].any()
    assert losses[0] > 0
    assert gradient[0].any()


def test_measuring_leaves_the_logits_alone():
    head, hidden, targets = make(4, 131, torch.float32)
    with torch.no_grad():
        got = loss_of_each(hidden, targets, head, fused_loss()).sum()

    torch.testing.assert_close(got, loss_of_each(hidden, targets, head).sum().detach())


@pytest.mark.parametrize("lead", [0.0, 12.0, 18.0])
@pytest.mark.parametrize("cap", [None, 40.0])
def test_float16_gradients_keep_what_the_loss_scale_saves(lead, cap):
    """As `test_loss` tries it for the reference, of which the kernel also has the last digits."""
    tokens, vocabulary = 8, 24
    torch.manual_seed(5)
    targets = torch.randint(vocabulary, (tokens,))
    logits = torch.randint(-4, 5, (tokens, vocabulary)) / 4 + lead * torch.nn.functional.one_hot(targets, vocabulary)
    low, exact = logits.half().requires_grad_(), logits.double().requires_grad_()
    head = torch.nn.Linear(vocabulary, vocabulary, bias=False).half().requires_grad_(False)
    head.weight.copy_(torch.eye(vocabulary))  # every product is exact in float16
    logits_after = exact if cap is None else torch.tanh(exact / cap) * cap
    (torch.nn.functional.cross_entropy(logits_after, targets, reduction="sum") * (65536.0 / tokens)).backward()
    (loss_of_each(low, targets, head, LogitTransform(cap=cap, fused=True)).sum() * (65536.0 / tokens)).backward()

    torch.testing.assert_close(low.grad.double(), exact.grad, rtol=5e-3, atol=1e-7)

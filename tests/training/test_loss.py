"""The loss over trained tokens has the value and the gradients of plain cross entropy over all logits."""

import pytest
import torch
from torch.nn import functional

from loratory.engine.training.ops import loss as loss_module
from loratory.engine.training.ops.loss import LogitTransform, TrainedTokens, attach_loss, loss_of_each

VOCABULARY, WIDTH = 97, 24


@pytest.fixture
def small_chunks(monkeypatch):
    """Seven positions at a time, so several chunks are needed."""
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_BYTES_CPU", 7 * VOCABULARY * 4)


def make_head(*, trained: bool, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(3)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias)
    return head.requires_grad_(trained)


def make_tokens(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(count, WIDTH).requires_grad_(), torch.randint(VOCABULARY, (count,))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "transform",
    [LogitTransform(), LogitTransform(scale=0.25), LogitTransform(cap=3.0), LogitTransform(scale=2.0, cap=5.0)],
    ids=["plain", "scaled", "capped", "both"],
)
def test_value_and_gradients_are_those_of_cross_entropy(trained, bias, transform):
    head = make_head(trained=trained, bias=bias)
    hidden, targets = make_tokens()
    again = hidden.detach().clone().requires_grad_()
    logits = head(again) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    expected = functional.cross_entropy(logits, targets, reduction="sum") / 30
    expected.backward()
    expected_head = [p.grad.clone() for p in head.parameters()] if trained else []
    head.zero_grad()

    got = loss_of_each(hidden, targets, head, transform).sum() / 30
    got.backward()

    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(hidden.grad, again.grad)
    for parameter, target in zip(head.parameters(), expected_head, strict=False):
        torch.testing.assert_close(parameter.grad, target)


@pytest.mark.usefixtures("small_chunks")
def test_no_chunk_of_logits_is_wider_than_allowed(monkeypatch):
    widths = []
    plain = functional.linear
    monkeypatch.setattr(functional, "linear", lambda x, *rest: widths.append(x.shape[0]) or plain(x, *rest))
    hidden, targets = make_tokens(30)

    loss_of_each(hidden, targets, make_head(trained=False)).sum()

    assert sum(widths) == 30
    assert max(widths) <= 7


def test_measuring_needs_no_gradient():
    hidden, targets = make_tokens()
    with torch.no_grad():
        measurement = loss_of_each(hidden, targets, make_head(trained=False)).sum()

    assert not measurement.requires_grad
    torch.testing.assert_close(measurement, loss_of_each(hidden, targets, make_head(trained=False)).sum().detach())


def test_bfloat16_gradients_are_scaled_in_float32():
    """1/3 in bfloat16 is off by a thousandth, always in the same direction."""
    head = make_head(trained=False).bfloat16()
    hidden, targets = make_tokens()
    low = hidden.detach().bfloat16().requires_grad_()
    (loss_of_each(low, targets, head).sum() / 3).backward()
    whole = hidden.detach().bfloat16().requires_grad_()
    loss_of_each(whole, targets, head).sum().backward()

    ratio = (low.grad.float() / (whole.grad.float() / 3)).nan_to_num(1.0)
    assert abs(float(ratio.mean()) - 1.0) < 2e-4


@pytest.mark.parametrize("lead", [0.0, 8.0, 12.0, 15.0, 18.0])
@pytest.mark.parametrize("cap", [None, 40.0])
def test_float16_gradients_keep_what_the_loss_scale_saves(lead, cap):
    """Where a model is sure of a token, the gradient is below what float16 holds until the loss scale is on it."""
    tokens = 30
    torch.manual_seed(5)
    targets = torch.randint(WIDTH, (tokens,))
    logits = torch.randint(-4, 5, (tokens, WIDTH)) / 4 + lead * functional.one_hot(targets, WIDTH)
    low, whole = logits.half().requires_grad_(), logits.float().requires_grad_()
    for hidden in (low, whole):
        head = torch.nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False).to(hidden.dtype)
        head.weight.copy_(torch.eye(WIDTH))  # every product is exact in float16
        (loss_of_each(hidden, targets, head, LogitTransform(cap=cap)).sum() * (65536.0 / tokens)).backward()

    torch.testing.assert_close(low.grad.float(), whole.grad, rtol=5e-3, atol=1e-7)


@pytest.mark.parametrize("through_logits", [False, True], ids=["projected", "through the logits"])
def test_a_model_returns_the_loss_of_the_tokens_it_is_given(tiny_model_folder, through_logits):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    ids = torch.arange(20, 44).view(2, 12)
    trained = TrainedTokens(positions=torch.tensor([3, 4, 15]), targets=torch.tensor([7, 8, 9]))
    with torch.no_grad():
        logits = model(ids).logits.reshape(24, -1)[trained.positions]
        attach_loss(model, through_logits=through_logits)
        loss = model(ids, trained_tokens=trained)
        logits_again = model(ids).logits

    torch.testing.assert_close(loss, functional.cross_entropy(logits, trained.targets, reduction="sum"))
    assert logits_again.shape[:2] == (2, 12)

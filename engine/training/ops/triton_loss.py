"""A Triton kernel that computes losses and overwrites logits with gradients; imported only where triton is.

Each program takes one position. It reads the position's logits once for maximum and sum, and once more to overwrite them with
their gradient, in float32 whatever their dtype. With the product that writes the logits and the one that reads the gradient,
five passes over memory of the logits' size; separate operations on a float32 copy make 26.

Sources: Milakov and Gimelshein 2018, algorithm 3 (arXiv:1805.02867), for the sum in one pass; Hsu et al. 2024, section 3.2
(arXiv:2410.10989), for the gradient in place.
"""

from typing import Any

import torch
import triton
import triton.language as tl

IGNORED = -100  # a target whose position has neither loss nor gradient

# Logits of a position at once: 32 in the registers of each thread of 16 warps.
_MOST_AT_ONCE = 16_384
_AT_ONCE_PER_WARP = 1024


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    """Return tanh(x): Triton has none for all GPUs, and the exponential of a negative number cannot overflow."""
    shrunk = tl.exp(-2.0 * tl.abs(x))
    share = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(x < 0, -share, share)


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]
    logits_ptr,  # (positions, vocabulary); overwritten by their gradient with WRITES_GRADIENT
    row_stride,
    targets_ptr,  # (positions,)
    losses_ptr,  # (positions,), float32, written
    normalizers_ptr,  # (positions,), float32: log of the sum of exponentials; read with KNOWS_NORMALIZER, else written
    factors_ptr,  # (positions,), float32: by what the gradient is multiplied; written with CHOOSES_FACTOR, else read
    vocabulary,
    scale,  # logits = cap · tanh(scale · output / cap)
    cap,
    gradient_sum,  # that absolute values of a position's gradient add up to, or half of it, with CHOOSES_FACTOR
    HAS_CAP: tl.constexpr,  # noqa: N803
    KNOWS_NORMALIZER: tl.constexpr,  # noqa: N803
    WRITES_GRADIENT: tl.constexpr,  # noqa: N803
    CHOOSES_FACTOR: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    start = logits_ptr + row * row_stride
    target = tl.load(targets_ptr + row)
    is_ignored = target == -100
    columns = tl.arange(0, BLOCK)

    if KNOWS_NORMALIZER:
        normalizer = tl.load(normalizers_ptr + row)
        others = 0.0
    else:
        highest = float("-inf")
        total = 0.0
        others = 0.0  # of all but the target, which 1 - p(target) could not give where p is nearly 1
        for first in range(0, vocabulary, BLOCK):
            offsets = first + columns
            inside = offsets < vocabulary
            logits = tl.load(start + offsets, mask=inside, other=0.0).to(tl.float32) * scale
            if HAS_CAP:
                logits = cap * _tanh(logits / cap)
            logits = tl.where(inside, logits, float("-inf"))
            higher = tl.maximum(highest, tl.max(logits, 0))
            exponentials = tl.exp(logits - higher)
            rescale = tl.exp(highest - higher)
            total = total * rescale + tl.sum(exponentials, 0)
            if CHOOSES_FACTOR:
                others = others * rescale + tl.sum(tl.where(offsets == target, 0.0, exponentials), 0)
            highest = higher
        normalizer = highest + tl.log(total)
        target_logit = tl.load(start + tl.where(is_ignored, 0, target)).to(tl.float32) * scale
        if HAS_CAP:
            target_logit = cap * _tanh(target_logit / cap)
        tl.store(losses_ptr + row, tl.where(is_ignored, 0.0, normalizer - target_logit))
        tl.store(normalizers_ptr + row, normalizer)
        others = others / total

    if WRITES_GRADIENT:
        if CHOOSES_FACTOR:  # a power of two, which changes no digit
            sums = tl.maximum(2.0 * others * tl.abs(scale), 1e-30)
            factor = tl.exp2(tl.floor(tl.log2(gradient_sum / sums)))
            tl.store(factors_ptr + row, factor)
        else:
            factor = tl.load(factors_ptr + row)
        factor = tl.where(is_ignored, 0.0, factor * scale)
        for first in range(0, vocabulary, BLOCK):
            offsets = first + columns
            inside = offsets < vocabulary
            logits = tl.load(start + offsets, mask=inside, other=0.0).to(tl.float32) * scale
            if HAS_CAP:
                share = _tanh(logits / cap)
                logits = cap * share
            gradient = tl.exp(logits - normalizer)
            gradient = tl.where(offsets == target, -others if CHOOSES_FACTOR else gradient - 1.0, gradient)
            if HAS_CAP:
                gradient *= 1.0 - share * share
            gradient *= factor
            tl.store(start + offsets, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


def losses_and_gradient_(
    logits: torch.Tensor, targets: torch.Tensor, scale: float, cap: float | None, gradient_sum: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite logits with their gradient; return the loss of each position and by what its gradient is multiplied.

    Args:
        logits: (positions, vocabulary), rows contiguous, bfloat16, float16 or float32, before scale and cap.
        targets: (positions,); those that are `IGNORED` have a loss and a gradient of 0.
        scale: Logits are cap · tanh(scale · logits / cap).
        cap: As above; None for scale · logits.
        gradient_sum: What absolute values of a position's gradient add up to, about; None leaves them as they are.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    factors = torch.ones_like(losses)
    _launch(logits, targets, (losses, torch.empty_like(losses), factors), (scale, cap), gradient_sum, gradient=True)
    return losses, factors


def losses_of(
    logits: torch.Tensor, targets: torch.Tensor, scale: float, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and log-normalizer of each position, float32; logits stay; arguments as of `losses_and_gradient_`."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    normalizers = torch.empty_like(losses)
    _launch(logits, targets, (losses, normalizers, losses), (scale, cap))
    return losses, normalizers


class CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """The loss of each position, (positions,) float32; the backward pass overwrites the logits, so it comes once."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor:
        logits = logits.contiguous()
        losses, normalizers = losses_of(logits, targets, scale, cap)
        ctx.save_for_backward(logits, targets, normalizers)
        ctx.transform = (scale, cap)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, targets, normalizers = ctx.saved_tensors
        factors = grad.float().contiguous()
        _launch(logits, targets, (factors, normalizers, factors), ctx.transform, gradient=True, is_backward=True)
        return logits, None, None, None


def _launch(
    logits: torch.Tensor,
    targets: torch.Tensor,
    of_positions: tuple[torch.Tensor, torch.Tensor, torch.Tensor],  # losses, normalizers, factors
    transform: tuple[float, float | None],
    gradient_sum: float | None = None,
    *,
    gradient: bool = False,
    is_backward: bool = False,
) -> None:
    positions, vocabulary = logits.shape
    if not positions:
        return
    assert logits.stride(1) == 1
    scale, cap = transform
    at_once = min(triton.next_power_of_2(vocabulary), _MOST_AT_ONCE)
    with torch.cuda.device_of(logits):  # layers may be spread
        _cross_entropy[(positions,)](
            logits,
            logits.stride(0),
            targets,
            *of_positions,
            vocabulary,
            scale,
            cap or 1.0,
            gradient_sum or 1.0,
            HAS_CAP=cap is not None,
            KNOWS_NORMALIZER=is_backward,
            WRITES_GRADIENT=gradient,
            CHOOSES_FACTOR=gradient_sum is not None,
            BLOCK=at_once,
            num_warps=max(1, at_once // _AT_ONCE_PER_WARP),
        )

"""Which faster kernels a run may use: each is tried first, on random numbers or through the model, and must give the same."""

import importlib.util

import torch

from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.training.failure import is_out_of_memory
from engine.training.ops.loss import LogitTransform, summed_loss

_TRIED_POSITIONS, _TRIED_WIDTH = 3, 32
_LOSS_TOLERANCE = 1e-3  # relative
_GRADIENT_TOLERANCE = 0.02  # of the norm of the reference's


def why_no_fused_loss(device: torch.device, dtype: torch.dtype, vocabulary: int, transform: LogitTransform) -> str:
    """Return why the Triton kernel cannot turn such logits into losses; "" where it gives what the reference does.

    It is tried: compiling a kernel needs a C compiler, which not every machine has.
    """
    if not is_wanted("fused_loss"):
        return LEFT_OUT
    if not _runs_triton(device):
        return "needs CUDA"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        agrees = _fused_loss_agrees(device, dtype, vocabulary, transform)
    except Exception as error:  # compilers fail as anything
        if is_out_of_memory(error):
            raise
        return f"triton cannot compile it ({type(error).__name__})"
    return "" if agrees else "its losses differ on this device"


def _runs_triton(device: torch.device) -> bool:
    return bool(device.type == "cuda")


def _fused_loss_agrees(device: torch.device, dtype: torch.dtype, vocabulary: int, transform: LogitTransform) -> bool:
    generator = torch.Generator(device).manual_seed(0)
    weight, inputs = (
        torch.randn(count, _TRIED_WIDTH, device=device, generator=generator).to(dtype)
        for count in (vocabulary, _TRIED_POSITIONS)
    )
    head = torch.nn.Linear(_TRIED_WIDTH, vocabulary, bias=False, device="meta").requires_grad_(False)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    targets = torch.arange(_TRIED_POSITIONS, device=device) % vocabulary
    results = []
    for fused in (False, True):
        hidden = inputs.clone().requires_grad_()
        loss = summed_loss(hidden, targets, head, LogitTransform(transform.scale, transform.cap, fused))
        (gradient,) = torch.autograd.grad(loss, hidden)
        results.append((float(loss.detach()), gradient.float()))
    (expected, expected_gradient), (got, gradient) = results
    distance = float((gradient - expected_gradient).norm() / expected_gradient.norm())
    return abs(got - expected) <= _LOSS_TOLERANCE * abs(expected) and distance <= _GRADIENT_TOLERANCE

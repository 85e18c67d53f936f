"""Which faster kernels a run may use: each is tried first, on random numbers or through the model, and must give the same."""

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.config.run import RunConfig
from engine.training.batching.probe import Probe, agrees
from engine.training.failure import is_out_of_memory
from engine.training.ops.loss import LogitTransform, causal_lm_of, summed_loss
from engine.training.placement import Placement

_TRIED_POSITIONS, _TRIED_WIDTH = 3, 32
_LOSS_TOLERANCE = 1e-3  # relative
_GRADIENT_TOLERANCE = 0.02  # of the norm of the reference's
_MODEL_GRADIENT_TOLERANCE = 0.15  # the same after all layers of a model, which bfloat16 moves by a few hundredths
_DIFFERS = "the model's loss or gradients differ"


def why_no_fused_loss(device: torch.device, dtype: torch.dtype, vocabulary: int, transform: LogitTransform) -> str:
    """Return why the Triton kernel cannot turn such logits into losses; "" where it gives what the reference does.

    It is tried: compiling a kernel needs a C compiler, which not every machine has.
    """
    if not is_wanted("fused_loss"):
        return LEFT_OUT
    if not _runs_triton(device):
        return "needs CUDA"
    if not _is_installed("triton"):
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


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


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


def use_layer_kernels(probe: Probe, config: RunConfig, placement: Placement, expected: float) -> dict[str, str]:
    """Put Liger's kernels into the layers of a model, else PyTorch's for its norms, where they give what its own give.

    Liger's fused loss stays out: ours never holds all logits either, and skips what is not trained.

    Returns:
        Why each of the two is not used, as in `Assembly.optimizations`.

    Source: Hsu et al. 2024, section 3.2 (arXiv:2410.10989).
    """
    causal_lm = causal_lm_of(probe.model)
    no_liger = _why_no_liger(causal_lm, config, placement)
    if not no_liger:
        no_liger = _try(probe, expected, lambda: _apply_liger(causal_lm), has_gradients=True)
    if not is_wanted("fused_norms"):
        no_norms = LEFT_OUT
    elif not no_liger:
        no_norms = "Liger's norms are used"
    elif not _runs_triton(placement.torch_device):
        no_norms = "needs CUDA"
    else:
        # A pass through a sharded model needs all processes, in a backward pass as in a forward pass.
        no_norms = _try(probe, expected, lambda: fuse_norms(causal_lm), has_gradients=not placement.sharded)
    return {"liger_kernels": no_liger, "fused_norms": no_norms}


def _why_no_liger(causal_lm: Any, config: RunConfig, placement: Placement) -> str:
    if not is_wanted("liger_kernels"):
        return LEFT_OUT
    if not config.training.use_liger_kernel:
        return "use_liger_kernel is off"
    if not _runs_triton(placement.torch_device):
        return "needs CUDA"
    if placement.spread or placement.sharded:
        return "needs all layers on one GPU"
    if not _is_installed("liger_kernel"):
        return "liger-kernel is not installed"
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except Exception as error:  # it looks for a GPU's compiler and other packages as it is imported
        return f"liger-kernel cannot be imported ({type(error).__name__})"

    family = causal_lm.config.model_type
    return "" if family in MODEL_TYPE_TO_APPLY_LIGER_FN else f"Liger has none for {family}"


def _apply_liger(causal_lm: Any) -> int:
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=causal_lm, cross_entropy=False, fused_linear_cross_entropy=False)
    return 1


def _try(probe: Probe, expected: float, change: Callable[[], int], *, has_gradients: bool) -> str:
    """Change a model's kernels; return why they were taken back, or "" where loss and gradients of a few rows stay."""
    restore = _remember(causal_lm_of(probe.model))
    before = probe.gradients() if has_gradients else []
    try:
        if not change():
            return "the model has none to replace"
        same = agrees(probe.loss(probe.padded()), expected)
        same = same and _same_gradients(probe.gradients() if has_gradients else [], before)
    except Exception as error:  # third-party kernels and their compiler can raise anything
        restore()
        if is_out_of_memory(error):
            raise
        return f"they fail ({type(error).__name__})"
    if not same:
        restore()
    return "" if same else _DIFFERS


def _same_gradients(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    floor = 1e-3 * max((float(one.norm()) for one in expected), default=0.0)
    return all(
        float((own - other).norm()) <= _MODEL_GRADIENT_TOLERANCE * float(other.norm()) + floor
        for own, other in zip(got, expected, strict=True)
    )


def _remember(causal_lm: Any) -> Callable[[], None]:
    """Return what undoes a change of kernels: methods of modules, and functions of the file that the model comes from."""
    file = sys.modules[type(causal_lm).__module__]
    before = [(owner, dict(vars(owner))) for owner in (file, *causal_lm.modules())]

    def restore() -> None:
        for owner, values in before:
            for name in vars(owner).keys() - values.keys():
                delattr(owner, name)
            vars(owner).update(values)

    return restore


def fuse_norms(causal_lm: Any) -> int:
    """Let PyTorch's kernel compute every plain RMSNorm of a model; returns how many.

    transformers writes it as six operations at 32 bits, which keep a copy of the input; the kernel keeps the input itself.
    """
    norms = [module for module in causal_lm.modules() if _is_plain_rms_norm(module)]
    for module in norms:
        # Bound to the instance, so saving sees the class that it knows.
        module.forward = types.MethodType(_rms_norm, module)
    return len(norms)


def _epsilon(norm: Any) -> float | None:
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


def _is_plain_rms_norm(module: Any) -> bool:
    """Whether a module multiplies by its weight alone; Gemma's adds one to it, others have a gate."""
    weight = getattr(module, "weight", None)
    has_name = type(module).__name__.endswith("RMSNorm")
    if not has_name or "forward" in vars(module) or weight is None or weight.dim() != 1 or _epsilon(module) is None:
        return False
    generator = torch.Generator(weight.device).manual_seed(0)
    sample = torch.randn(2, weight.shape[0], device=weight.device, generator=generator).to(weight.dtype)
    with torch.no_grad():
        try:
            expected = module(sample).float()
        except (RuntimeError, TypeError, ValueError):
            return False
        return float((_rms_norm(module, sample).float() - expected).norm() / expected.norm().clamp_min(1e-6)) < 0.01


def _rms_norm(norm: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    weight, device = norm.weight, hidden.device.type
    if args or kwargs or hidden.dtype != weight.dtype:  # the kernel takes one dtype
        result: torch.Tensor = type(norm).forward(norm, hidden, *args, **kwargs)
        return result
    if torch.is_autocast_enabled(device):  # it would take the kernel's inputs to 32 bits
        with torch.autocast(device, enabled=False):
            return functional.rms_norm(hidden, weight.shape, weight, _epsilon(norm))
    return functional.rms_norm(hidden, weight.shape, weight, _epsilon(norm))

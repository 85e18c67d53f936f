"""Which faster kernels a run may use: each is tried through the model, whose loss and gradients of a few rows must stay."""

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from loratory.engine.config.optimizations import LEFT_OUT, is_wanted
from loratory.engine.config.run import RunConfig
from loratory.engine.training.batching.batches import PassTensors
from loratory.engine.training.batching.probe import Probe, losses_match
from loratory.engine.training.failure import is_out_of_memory
from loratory.engine.training.image_parts import language_model_of
from loratory.engine.training.ops.attention import JOINED_ATTENTION, joined_attention
from loratory.engine.training.ops.loss import causal_lm_of
from loratory.engine.training.placement import Placement

_GRADIENT_TOLERANCE = 0.15  # of the norm after all layers of a model, which bfloat16 moves by a few hundredths
_DIFFERS = "the model's loss or gradients differ"


def use_fused_loss(probe: Probe, placement: Placement, expected: float, attach: Callable[[], None]) -> str:
    """Let the Triton kernel compute losses, which `attach` does; return why it does not, as in `Assembly.optimizations`.

    It is tried because compiling it needs a C compiler, which not every machine has.
    """
    if not is_wanted("fused_loss"):
        return LEFT_OUT
    if not _runs_triton(placement.torch_device):
        return "needs CUDA"
    if not _is_installed("triton"):
        return "triton is not installed"
    return _try(probe, placement, expected, attach)


def _runs_triton(device: torch.device) -> bool:
    return bool(device.type == "cuda")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def use_layer_kernels(probe: Probe, config: RunConfig, placement: Placement, expected: float) -> dict[str, str]:
    """Put Liger's kernels into the layers of a model, else PyTorch's for its norms, where losses and gradients stay.

    Liger's fused loss stays out: ours never holds all logits either, and skips what is not trained.

    Returns:
        Why each of the two is not used, as in `Assembly.optimizations`.

    Source: Hsu et al. 2024, section 3.2 (arXiv:2410.10989).
    """
    causal_lm = causal_lm_of(probe.model)
    no_liger = _why_no_liger(causal_lm, config, placement)
    if not no_liger:
        no_liger = _try(probe, placement, expected, lambda: _apply_liger(causal_lm))
    if not is_wanted("fused_norms"):
        no_norms = LEFT_OUT
    elif not no_liger:
        no_norms = "Liger's norms are used"
    elif not _runs_triton(placement.torch_device):
        no_norms = "needs CUDA"
    else:
        no_norms = _try(probe, placement, expected, lambda: fuse_norms(language_model_of(causal_lm)))
    return {"liger_kernels": no_liger, "fused_norms": no_norms}


def _why_no_liger(causal_lm: Any, config: RunConfig, placement: Placement) -> str:
    if not is_wanted("liger_kernels"):
        return LEFT_OUT
    if not config.training.use_liger_kernel:
        return "use_liger_kernel is off"
    if not _runs_triton(placement.torch_device):
        return "needs CUDA"
    if placement.layer_devices or placement.sharded:
        return "needs all layers on one GPU"
    if not _is_installed("liger_kernel"):
        return "liger-kernel is not installed"
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except Exception as error:  # its import needs a GPU's compiler and other packages
        return f"liger-kernel cannot be imported ({type(error).__name__})"

    family = causal_lm.config.model_type
    return "" if family in MODEL_TYPE_TO_APPLY_LIGER_FN else f"Liger has none for {family}"


def _apply_liger(causal_lm: Any) -> None:
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=causal_lm, cross_entropy=False, fused_linear_cross_entropy=False)


def why_not_compiled(probe: Probe, config: RunConfig, placement: Placement, expected: float, rows: PassTensors) -> str:
    """Let torch.compile compile the layers of a model; return the reason if it does not."""
    if not _runs_triton(placement.torch_device):
        return "it helps on CUDA only: on a processor it costs more than it gains"
    if placement.layer_devices or placement.sharded:
        return "it cannot follow layers that are on several GPUs"
    if not _is_installed("triton"):
        return "triton is not installed"
    if config.training.gradient_checkpointing and config.adapter.traits.has_quick_layers(config.adapter):
        # A layer with a part that stays uncompiled, as LoRA's do, is then skipped as a whole.
        return "it compiles no layers of LoRA with gradient checkpointing"
    return _try(probe, placement, expected, lambda: compile_layers(probe.model), rows)


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> int:
    """Compile each decoder layer by itself, for any length of rows; returns how many.

    One graph serves all layers of a kind, so a deep model compiles as quickly as a flat one. Our LoRA function writes
    in place, which a compiler cannot follow, and our attention goes from row to row; both stay outside, and what is
    fused are the steps between products.
    """
    os.environ.pop("TORCHDYNAMO_DISABLE", None)  # workers have it while they import: `loratory.engine.processes.spawn`
    AttentionInterface.register(JOINED_ATTENTION, torch.compiler.disable(joined_attention))
    for module in model.modules():
        if "forward" in vars(module) and hasattr(module, "lora_A"):
            module.forward = torch.compiler.disable(module.forward)
    language_model = language_model_of(causal_lm_of(model))
    layers = [module for module in language_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)


def _try(
    probe: Probe,
    placement: Placement,
    expected: float,
    change: Callable[[], object],
    rows: PassTensors | None = None,
) -> str:
    """Change a model's kernels; return why they were restored, or "" where loss and gradients of a few rows stay."""
    restore = _remember(causal_lm_of(probe.model))
    rows = rows or probe.padded()
    # A backward pass through a sharded model needs all processes, as a forward pass does.
    before = [] if placement.sharded else probe.gradients(rows)
    try:
        if change() == 0:
            return "the model has none to replace"
        same = losses_match(probe.loss(rows), expected)
        same = same and _same_gradients([] if placement.sharded else probe.gradients(rows), before)
    except Exception as error:  # third-party kernels and their compiler can raise anything
        restore()
        if is_out_of_memory(error):
            raise
        return f"they fail ({type(error).__name__})"
    if not same:
        restore()
    return "" if same else _DIFFERS


def _same_gradients(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    floor = 1e-3 * max((float(gradient.norm()) for gradient in expected), default=0.0)
    return all(
        float((own - other).norm()) <= _GRADIENT_TOLERANCE * float(other.norm()) + floor
        for own, other in zip(got, expected, strict=True)
    )


def _remember(causal_lm: Any) -> Callable[[], None]:
    """Return a function that undoes a change of kernels: methods of modules, and functions of the model's file."""
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
    """Return whether a module multiplies by its weight alone; Gemma's adds one to it, others have a gate."""
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

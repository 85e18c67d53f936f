"""Optional kernels: Liger's, and those that torch.compile makes. Used where they are requested, available and faster.

Both replace how something is computed and not what. Whether that is true of the model at hand is measured by
`engine.training.assembly`, which compares its loss before and after.
"""

import importlib.util
from typing import Any

import torch

from engine.config.run import RunConfig
from engine.training.ops.attention import JOINED_ATTENTION, joined_attention
from engine.training.placement import Placement


def use_liger_kernels(causal_lm: Any, config: RunConfig, placement: Placement) -> str | None:
    """Put Liger's norm, rotary embedding and gated feed-forward kernels into a model where the settings ask for them.

    Its fused loss stays out: ours never holds all logits either, and skips what is not trained.

    Returns:
        Why they are not used although they were asked for, in words; else None.

    Source: Hsu et al. 2024, section 3.2 (arXiv:2410.10989).
    """
    if not config.training.use_liger_kernel:
        return None
    if placement.torch_device.type != "cuda":
        return "Liger's kernels need CUDA; using the model's own."
    if placement.spread:
        return "Liger's kernels work on the first GPU only, and layers are spread; using the model's own."
    if importlib.util.find_spec("liger_kernel") is None:
        return "Liger's kernels are not installed; using the model's own. `pip install liger-kernel` installs them."
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    family = causal_lm.config.model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"Liger has no kernels for models of type {family}; using the model's own."
    _apply_liger_kernel_to_instance(model=causal_lm, cross_entropy=False, fused_linear_cross_entropy=False)
    return None


def why_not_compiled(config: RunConfig, placement: Placement) -> str | None:
    """Why torch.compile is not used although the settings ask for it, in words; None where it is used or not wanted."""
    if not config.training.torch_compile:
        return None
    if placement.torch_device.type != "cuda":
        return "torch.compile helps on CUDA only: on a processor it costs more than it gains; running without it."
    if placement.spread:
        return "torch.compile cannot follow layers from one GPU to the next; running without it."
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton, which is not installed; running without it."
    return None


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> int:
    """Compile each decoder layer by itself, for any length of rows; returns how many.

    One graph serves all layers of a kind, so a deep model compiles as quickly as a flat one. Our LoRA branch writes
    into its input, which a compiler cannot follow, and our attention goes from row to row; both stay outside, and what is
    fused are the steps between products.
    """
    from transformers import AttentionInterface
    from transformers.modeling_layers import GradientCheckpointingLayer

    AttentionInterface.register(JOINED_ATTENTION, torch.compiler.disable(joined_attention))
    for module in model.modules():
        if "forward" in vars(module) and hasattr(module, "lora_A"):
            module.forward = torch.compiler.disable(module.forward)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)


def leave_uncompiled(model: torch.nn.Module) -> None:
    """Undo `compile_layers`."""
    for module in model.modules():
        module._compiled_call_impl = None

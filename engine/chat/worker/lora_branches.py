"""A faster forward pass for plain LoRA layers, without gradients."""

import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional

# Layers with the plain branch below. PEFT's other layers (convolutions, experts, attention) keep their own forward.
_QUANTIZED_LAYERS = ("Linear4bit", "Linear8bitLt")


class _Branch(NamedTuple):
    """What one adapter adds: scaling · x Aᵀ Bᵀ (Hu et al. 2021, section 4.1, arXiv:2106.09685)."""

    a: torch.Tensor  # (r, in_features)
    b: torch.Tensor  # (out_features, r)
    scaling: float
    rounds_before: bool  # PEFT casts the update of a quantized layer before adding it, elsewhere the sum


def use_plain_branches(layers: Iterable[torch.nn.Module]) -> None:
    """Replace the forward pass of plain LoRA layers by a faster one without gradients.

    Call it again after an adapter was added. The layers' switches still work: `_disable_adapters`, and `_active_adapter`
    with one name. Adapters with DoRA or another variant, or with a bias of their own, keep PEFT's forward pass. On a CPU
    the matrices of plain adapters are held in float32, as PEFT loads them by default.
    """
    for layer in layers:
        if isinstance(layer, LoraLayer) and type(layer).__name__ in ("Linear", *_QUANTIZED_LAYERS):
            # Bound to the instance, which keeps PEFT's class.
            layer.forward = types.MethodType(_forward_with(_plain_branches(layer)), layer)


def _plain_branches(layer: Any) -> dict[str, _Branch]:
    branches = {}
    for name, scaling in layer.scaling.items():
        a, b = layer.lora_A[name], layer.lora_B[name]
        if name not in layer.lora_variant and b.bias is None:
            if a.weight.device.type == "cpu":
                a.float()
                b.float()
            branches[name] = _Branch(a.weight, b.weight, scaling, type(layer).__name__ in _QUANTIZED_LAYERS)
    return branches


def _forward_with(branches: dict[str, _Branch]) -> Callable[..., torch.Tensor]:
    def forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if layer._disable_adapters:
            return layer.base_layer(x, *args, **kwargs)
        branch = branches.get(layer._active_adapter[0])
        if branch is None or args or kwargs:
            return type(layer).forward(layer, x, *args, **kwargs)
        result = layer.base_layer(x)
        between = functional.linear(x.to(branch.a.dtype), branch.a)
        update = functional.linear(between, branch.b).mul_(branch.scaling)
        return result.add_(update.to(result.dtype) if branch.rounds_before else update)

    return forward

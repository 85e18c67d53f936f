"""LoRA's branch for answering: PEFT's operations, bit by bit, without the checks and modules that it has around them.

An answer is written one token at a time. At a single token the products of the branch are so small that what is done around
them takes longer than they do: in Python, and on a processor in the kernels for 16 bits, which wake other threads for them.
"""

import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional

# Layers whose branch is the sum below. Others of PEFT's (convolutions, experts, attention as a whole) keep their own pass.
_QUANTIZED_LAYERS = frozenset({"Linear4bit", "Linear8bitLt"})
_PLAIN_LAYERS = _QUANTIZED_LAYERS | {"Linear"}


class _Branch(NamedTuple):
    """What one adapter adds: scaling · x Aᵀ Bᵀ (Hu et al. 2021, section 4.1, arXiv:2106.09685)."""

    a: torch.Tensor  # (r, in_features)
    b: torch.Tensor  # (out_features, r)
    scaling: float
    rounds_before: bool  # PEFT rounds what is added to a quantized layer's result, and elsewhere the sum

    def add_to(self, result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add it to what the frozen layer gives, (…, out_features), in place."""
        between = functional.linear(x.to(self.a.dtype), self.a)
        added = functional.linear(between, self.b).mul_(self.scaling)
        return result.add_(added.to(result.dtype) if self.rounds_before else added)


def use_plain_branches(layers: Iterable[torch.nn.Module]) -> None:
    """Replace the forward pass of plain LoRA layers by one for answering, without gradients.

    To be called again when an adapter was added. The layers' own switches stay in force: `_disable_adapters`, and
    `_active_adapter` with one name. Adapters with DoRA or another variant, or with a bias of their own, keep PEFT's pass.
    On a processor the others' matrices are held in float32, as PEFT loads them by default.
    """
    for layer in layers:
        if isinstance(layer, LoraLayer) and type(layer).__name__ in _PLAIN_LAYERS:
            # Bound to the instance, so that PEFT sees the class that it knows.
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
        result: torch.Tensor
        if layer._disable_adapters:
            result = layer.base_layer(x, *args, **kwargs)
            return result
        branch = branches.get(layer._active_adapter[0])
        if branch is None or args or kwargs:
            result = type(layer).forward(layer, x, *args, **kwargs)
            return result
        return branch.add_to(layer.base_layer(x), x)

    return forward

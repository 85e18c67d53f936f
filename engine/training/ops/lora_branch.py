"""LoRA's branch without the extra work of PEFT's general layer: same mathematics, fewer passes over memory.

PEFT copies each input to the adapter's float32, drops from that copy, multiplies in float32, scales the result and adds
it to a new tensor. Here the branch is computed in the dtype of the frozen layer and added in place, and all that is kept
for the backward pass is the layer's own input and the r numbers per token between the two matrices.

Dropout masks are drawn quickly on a CPU, where PyTorch draws one random number at a time. A mask is drawn from a seed that
comes from PyTorch's own generator: a resumed run and a recomputed forward pass (gradient checkpointing) draw the same ones.
"""

import types
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

_LEVELS = 1 << 16  # a probability is held in 16 random bits


@dataclass(frozen=True)
class DropoutMask:
    """Which elements of a tensor stay. On CPUs only the seed is kept, and the mask drawn again when it is needed.

    `keep` is the exact share that stays, which inverted dropout divides by (Srivastava et al. 2014, section 10).
    """

    keep: float
    seed: int | None
    drawn: torch.Tensor | None

    @classmethod
    def draw(cls, x: torch.Tensor, p: float) -> Self:
        """Draw a mask for a tensor of this shape and device, of which the share `p` is dropped."""
        dropped = round(p * _LEVELS)
        keep = 1.0 - dropped / _LEVELS
        if x.device.type == "cpu":
            return cls(keep, int(torch.randint(1 << 62, ())), None)
        return cls(keep, None, torch.empty_like(x, dtype=torch.bool).bernoulli_(keep))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with zeros where the mask drops; not yet divided by `keep`."""
        if self.drawn is not None:
            return x * self.drawn
        assert self.seed is not None
        words = -(-x.numel() // 4)  # of 64 bits, each good for four elements
        bits = torch.from_numpy(np.random.SFC64(self.seed).random_raw(words).view(np.int16))[: x.numel()]
        threshold = round((1.0 - self.keep) * _LEVELS) - _LEVELS // 2
        # All bits set where the element stays: a bitwise AND is the cheapest multiplication by 0 or 1.
        stays = bits.ge_(threshold).neg_().view(x.shape)
        if x.element_size() == 2:
            return torch.bitwise_and(x.view(torch.int16), stays).view(x.dtype)
        whole = {4: torch.int32, 8: torch.int64}[x.element_size()]
        return torch.bitwise_and(x.view(whole), stays.to(whole)).view(x.dtype)


def make_lora_quick(model: torch.nn.Module) -> int:
    """Replace the forward pass of every plain LoRA layer of a PEFT model; returns how many were replaced.

    Layers with DoRA or another variant, with a bias of the adapter's own, or with several adapters keep PEFT's.
    """
    replaced = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and is_plain(module):
            # Bound to the instance, so PEFT, saving and merging see the class that they know.
            module.forward = types.MethodType(quick_forward, module)
            replaced += 1
    return replaced


def is_plain(layer: Any) -> bool:
    """Whether a LoRA layer has one adapter of two plain matrices: no DoRA or other variant, and no bias of its own."""
    names = list(layer.lora_A.keys())
    return (
        len(names) == 1
        and not getattr(layer, "lora_variant", None)
        and isinstance(layer.lora_A[names[0]], torch.nn.Linear)
        and layer.lora_B[names[0]].bias is None
    )


def quick_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Run the frozen layer, then the branch; PEFT's own forward pass where the layer's one adapter is not in force."""
    name = next(iter(layer.lora_A.keys()), None)
    if layer.disable_adapters or layer.merged or args or kwargs or len(layer.lora_A) != 1:
        return type(layer).forward(layer, x, *args, **kwargs)
    if name not in layer.active_adapters:
        return type(layer).forward(layer, x, *args, **kwargs)
    result = _own(layer.base_layer(x), layer.base_layer)
    dropout = layer.lora_dropout[name]
    p = dropout.p if layer.training and isinstance(dropout, torch.nn.Dropout) else 0.0
    a, b, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    with torch.autocast(result.device.type, enabled=False):  # the branch does its own casts
        return _LoraBranch.apply(result, x.to(result.dtype), a, b, scaling, p)


def _own(result: torch.Tensor, base_layer: torch.nn.Module) -> torch.Tensor:
    """What the frozen layer gives, as a tensor that may be added to.

    bitsandbytes' own functions may return a view, with a bias or from int8 on GPUs, and autograd forbids writing into a
    view that a function like theirs has made.
    """
    if result._is_view() and type(base_layer) is not torch.nn.Linear:
        result = result.clone()
    return result.contiguous()


class _LoraBranch(torch.autograd.Function):  # type: ignore[misc]
    """result + scaling · dropout(x) Aᵀ Bᵀ, added into `result` (Hu et al. 2021, section 4.1, arXiv:2106.09685)."""

    @staticmethod
    def forward(
        ctx: Any,
        result: torch.Tensor,  # (…, out_features), of the frozen layer
        x: torch.Tensor,  # (…, in_features), in the dtype of `result`
        a: torch.Tensor,  # (r, in_features), trained
        b: torch.Tensor,  # (out_features, r), trained
        scaling: float,
        p: float,
    ) -> torch.Tensor:
        ctx.mark_dirty(result)
        inputs = x.reshape(-1, x.shape[-1])
        mask = DropoutMask.draw(inputs, p) if p else None
        if mask is not None:
            inputs = mask.apply(inputs)
            scaling = scaling / mask.keep
        a_low = a.to(result.dtype)
        b_low = (b * scaling).to(result.dtype)
        between = inputs @ a_low.t()  # (tokens, r)
        result.view(-1, result.shape[-1]).addmm_(between, b_low.t())
        ctx.save_for_backward(x, between, a_low, b_low, mask.drawn if mask is not None else None)
        ctx.scaling = scaling
        ctx.mask = None if mask is None else (mask.keep, mask.seed)
        ctx.trained_dtype = a.dtype
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, between, a_low, b_low, drawn = ctx.saved_tensors
        mask = None if ctx.mask is None else DropoutMask(ctx.mask[0], ctx.mask[1], drawn)
        grads = grad.reshape(-1, grad.shape[-1])
        inputs = x.reshape(-1, x.shape[-1])
        if mask is not None:
            inputs = mask.apply(inputs)
        grad_between = grads @ b_low
        grad_b = (grads.t() @ between).to(ctx.trained_dtype).mul_(ctx.scaling)
        grad_a = (grad_between.t() @ inputs).to(ctx.trained_dtype)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad_between @ a_low
            grad_x = (grad_x if mask is None else mask.apply(grad_x)).view(x.shape)
        return grad, grad_x, grad_a, grad_b, None, None

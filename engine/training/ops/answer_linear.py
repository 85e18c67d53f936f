"""Linear layers while a model answers on a processor: no gradients, no weight that changes, and few rows at a time.

The products of such a pass are small, so what is around them takes longer. Layers with one input become one product, with
LoRA's A among the weights, which are held in the order in which the kernel reads them; a second product adds all branches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from loratory.engine.config.rules import COPIED_WEIGHT_BYTES
from loratory.engine.training.ops.lora_linear import LinearGroup, lora_linears, trained_matrices


@contextmanager
def quick_linears(model: Any, head: Any) -> Iterator[None]:
    """Let the plain LoRA layers of a model and its head answer quickly within the block, where they are in bfloat16."""
    forwards: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {}
    linears = lora_linears(model)
    if sum(weight.nbytes for weight in model.parameters()) <= COPIED_WEIGHT_BYTES:
        for group in linears.groups if linears is not None else ():
            if all(_is_quick(layer.base_layer) for layer in group.layers):
                forwards |= zip(group.layers, _forwards(group), strict=True)
        if _is_quick(head):
            forwards[head] = partial(_product, _packed(head.weight.detach()), head.bias)
    own = {layer: vars(layer).get("forward") for layer in forwards}
    try:
        for layer, forward in forwards.items():
            layer.forward = forward
        yield
    finally:
        for layer, before in own.items():
            vars(layer).pop("forward")
            if before is not None:
                layer.forward = before


def _is_quick(layer: Any) -> bool:
    """Return whether a layer is one that the kernel has: plain, on a processor, and in bfloat16."""
    is_plain = type(layer) is torch.nn.Linear and "forward" not in vars(layer)
    return is_plain and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.bfloat16


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _product(packed: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _forwards(group: LinearGroup) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield a forward pass for each layer of a group; the first computes the outputs of all, which wait for their calls."""
    bases = [layer.base_layer for layer in group.layers]
    sizes = [base.out_features for base in bases]
    a, b = trained_matrices(group)
    weight = _packed(torch.cat([*(base.weight.detach() for base in bases), a]))
    bias = None
    if any(base.bias is not None for base in bases):
        zeros = (
            base.weight.new_zeros(base.out_features) if base.bias is None else base.bias.detach() for base in bases
        )
        bias = torch.cat([*zeros, a.new_zeros(len(a))])
    branch = torch.block_diag(*b) if len(a) else None  # (sum of ranks, sum of outputs)
    waiting: list[torch.Tensor] = []

    def first(x: torch.Tensor) -> torch.Tensor:
        output, hidden = _product(weight, bias, x).split([sum(sizes), len(a)], dim=-1)
        if branch is not None:
            flat = output.reshape(-1, output.shape[-1])
            output = flat.addmm_(hidden.reshape(-1, len(a)), branch).view(output.shape)
        waiting[:] = output.split(sizes, dim=-1)
        return waiting[0]

    yield first
    yield from (partial(lambda number, _: waiting[number], number) for number in range(1, len(bases)))

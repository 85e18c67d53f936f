"""LoRA layers as one autograd function, base and branch together: one layer, or several that get the same input.

PEFT copies each input to the adapter's float32, multiplies in float32 and adds the result to a new tensor, and queries, keys
and values each give autograd gradients to add. Here all products of a shared input are one function in the dtype of the frozen
layers: its input is saved once, the matrices A are multiplied as one, and the gradient at the input is summed in place.

Copies of A and B in the precision of products are made once for all passes of a step. 4-bit weights are written out in the
forward pass and again in the backward pass.

Frozen layers that are not described here (a trained bias, int8, hooks) compute their own product, to which the function adds
the branch. What is not a plain LoRA layer with its one adapter in force, PEFT computes.

Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685) for the products; Han et al. 2023, Unsloth, for the manual backward pass.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch.autograd.function import once_differentiable

from loratory.engine.config.optimizations import LEFT_OUT, is_wanted
from loratory.engine.training.ops.products import (
    DropoutMask,
    as_writable,
    dense_weight,
    frozen_product,
    product_dtype,
    rows_of,
    wide_product,
)

_ATTRIBUTE = "_loratory_linears"  # of a model; of a layer, its group


class _Copies(NamedTuple):
    """Matrices of a group in the dtype of its products, and of what they are copies."""

    sources: tuple[Any, ...]  # that dtype, and address and version of each trained matrix, which others may replace
    a: torch.Tensor  # (sum of ranks, in_features), one below the other
    b: tuple[torch.Tensor, ...]  # (out_features, rank) each


class _Waiting(NamedTuple):
    """Outputs of layers that have not been called yet."""

    x: torch.Tensor
    version: int | None
    outputs: dict[int, torch.Tensor]  # by the number of the layer in its group


@dataclass(frozen=True)
class _Call:
    """What one call of `_LoraProducts` needs in addition to tensors that may have gradients."""

    group: "LinearGroup"
    bases: tuple[torch.nn.Linear, ...]
    ranks: tuple[int, ...]
    scaling: float
    drop: float


@dataclass(eq=False)
class LinearGroup:
    """LoRA layers that are called one after the other with the same input, in that order; often one alone.

    The first that is called computes the outputs of all. They wait for the calls with that very tensor.
    """

    layers: tuple[Any, ...]
    keeps_copies: bool = False  # for the next pass of the step
    copies: _Copies | None = None
    _waiting: _Waiting | None = None

    def forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the output of one of the layers, whose adapter is in force."""
        number = self.layers.index(layer)
        if number and (output := self._take(number, x)) is not None:
            return output
        members = self.layers if number == 0 and all(_takes(member, x) for member in self.layers) else (layer,)
        if len(members) == 1 and not _takes(layer, x):
            product = as_writable(layer.base_layer(x), layer.base_layer)
            return self._compute(members, x.to(product.dtype), product)[0]
        first, *others = self._compute(members, x.to(product_dtype(layer.base_layer)), None)
        self._waiting = _Waiting(x, _version(x), dict(enumerate(others, 1))) if others else None
        return first

    def forget(self) -> None:
        """Release outputs that were not used, as where a recomputed pass ends early."""
        self._waiting = None

    def cast_matrices(
        self, trained: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return A and B, which `trained` has in turn, for products in `dtype`."""
        sources = (dtype, *((matrix.data_ptr(), matrix._version) for matrix in trained))
        if self.copies is not None and self.copies.sources == sources:
            return self.copies.a, self.copies.b
        matrices = [matrix.detach() for matrix in trained]
        upper, lower = matrices[0::2], tuple(matrices[1::2])
        if any(matrix.dtype != dtype for matrix in matrices):
            a = upper[0].new_empty(sum(map(len, upper)), upper[0].shape[1], dtype=dtype)
            b = tuple(torch.empty_like(matrix, dtype=dtype) for matrix in lower)
            torch._foreach_copy_([*a.split([*map(len, upper)]), *b], [*upper, *lower])  # one launch for all
        else:
            a, b = upper[0] if len(upper) == 1 else torch.cat(upper), lower
        if self.keeps_copies:
            self.copies = _Copies(sources, a, b)
        return a, b

    def _take(self, number: int, x: torch.Tensor) -> torch.Tensor | None:
        waiting = self._waiting
        if waiting is None or waiting.x is not x or waiting.version != _version(x):
            return None
        output = waiting.outputs.pop(number, None)
        if not waiting.outputs:
            self._waiting = None
        return output

    def _compute(
        self, layers: Sequence[Any], x: torch.Tensor, product: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        trained = [matrix for layer in layers for matrix in _trained(layer)]
        call = _Call(
            self,
            tuple(layer.base_layer for layer in layers),
            tuple(a.shape[0] for a in trained[0::2]),
            float(layers[0].scaling[_adapter(layers[0])]),
            _dropout(layers[0]) if layers[0].training else 0.0,
        )
        with torch.autocast(x.device.type, enabled=False):  # every operand is in the precision of the product
            outputs = _LoraProducts.apply(x, product, call, *trained)
        return outputs if len(layers) > 1 else (outputs,)


class _LoraProducts(torch.autograd.Function):  # type: ignore[misc]
    """x Wᵀ + bias + scaling · dropout(x) Aᵀ Bᵀ for each layer of a call; a `product` of one layer gets the branch alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: torch.Tensor | None, call: _Call, *trained: torch.Tensor) -> Any:
        rows, ranks, scaling = rows_of(x), list(call.ranks), call.scaling
        a, b = call.group.cast_matrices(trained, x.dtype)
        hidden = rows.new_empty(rows.shape[0], sum(ranks))  # scaled, so gradients of B need no scaling
        masks = [DropoutMask.draw(rows, call.drop) for _ in ranks] if call.drop else []
        if masks:
            scaling /= masks[0].keep
            for mask, part, own in zip(masks, hidden.split(ranks, 1), a.split(ranks), strict=True):
                part.addmm_(mask.apply(rows), own.t(), beta=0, alpha=scaling)
        else:
            hidden.addmm_(rows, a.t(), beta=0, alpha=scaling)
        outputs = []
        for base, part, own in zip(call.bases, hidden.split(ranks, 1), b, strict=True):
            output = frozen_product(x, base) if product is None else product
            output.view(-1, output.shape[-1]).addmm_(part, own.t())
            outputs.append(output)
        if product is not None:
            ctx.mark_dirty(product)
        ctx.save_for_backward(x, hidden, a, *b, *(mask.tensor for mask in masks))
        ctx.call, ctx.scaling, ctx.trained_dtype = call, scaling, trained[0].dtype
        ctx.masks = [(mask.keep, mask.seed) for mask in masks]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, (x, hidden, a, *saved) = ctx.call, ctx.saved_tensors
        call.group.forget()
        count, ranks = len(call.bases), list(call.ranks)
        b, mask_tensors = saved[:count], saved[count:]
        masks = [DropoutMask(keep, seed, tensor) for (keep, seed), tensor in zip(ctx.masks, mask_tensors, strict=True)]
        rows, grad_outputs = rows_of(x), [rows_of(gradient) for gradient in gradients]
        grad_hidden, grads_b = torch.empty_like(hidden), []
        parts = zip(grad_outputs, grad_hidden.split(ranks, 1), hidden.split(ranks, 1), b, strict=True)
        for grad, part, own, matrix in parts:
            part.addmm_(grad, matrix, beta=0, alpha=ctx.scaling)
            grads_b.append(wide_product(grad.t(), own, ctx.trained_dtype))
        grad_x, has_product = None, ctx.needs_input_grad[1]
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(rows) if has_product else torch.empty_like(rows)
            for number, (grad, base) in enumerate(() if has_product else zip(grad_outputs, call.bases, strict=True)):
                # Not a variable: of 4-bit weights one at a time is written out.
                grad_x.addmm_(grad, dense_weight(base, x.dtype), beta=min(number, 1))
        if masks:
            grads_a = []
            for mask, part, own in zip(masks, grad_hidden.split(ranks, 1), a.split(ranks), strict=True):
                grads_a.append(wide_product(part.t(), mask.apply(rows), ctx.trained_dtype))
                if grad_x is not None:
                    grad_x.add_(mask.apply(part @ own))
        else:
            grads_a = list(wide_product(grad_hidden.t(), rows, ctx.trained_dtype).split(ranks))
            if grad_x is not None:
                grad_x.addmm_(grad_hidden, a)
        pairs = (matrix for pair in zip(grads_a, grads_b, strict=True) for matrix in pair)
        grad_product = gradients[0] if has_product else None
        return (grad_x if grad_x is None else grad_x.reshape(x.shape), grad_product, None, *pairs)


@dataclass(eq=False)
class LoraLinears:
    """The plain LoRA layers of one model, which run as `_LoraProducts`."""

    groups: list[LinearGroup]

    @property
    def optimizations(self) -> dict[str, str]:
        """Return why each optimization of `loratory.engine.config.optimizations` in this module is not used, "" where it is."""
        has_groups = any(len(group.layers) > 1 for group in self.groups)
        why_apart = "no layers have one input" if is_wanted("shared_inputs") else LEFT_OUT
        return {
            "fused_lora": "" if self.groups else "no layer has plain LoRA",
            "shared_inputs": "" if has_groups else why_apart,
        }

    @contextmanager
    def step(self) -> Iterator[None]:
        """Keep copies of the trained matrices within the block, for all of its passes."""
        for group in self.groups:
            group.keeps_copies = True
        try:
            yield
        finally:
            for group in self.groups:
                group.keeps_copies, group.copies = False, None

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Watch a pass within the block; layers that it calls one after the other with the same input become a group."""
        if not is_wanted("shared_inputs"):
            yield
            return
        calls: list[tuple[Any, torch.Tensor]] = []  # holds the inputs: an address may be used again

        def note(layer: Any, inputs: tuple[Any, ...]) -> None:
            calls.append((layer, inputs[0]))

        layers = [layer for group in self.groups for layer in group.layers]
        handles = [layer.register_forward_pre_hook(note) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._regroup(calls)

    def _regroup(self, calls: Sequence[tuple[Any, torch.Tensor]]) -> None:
        runs: list[list[Any]] = []
        last = None
        for layer, x in calls:
            if x is last and all(_fit_together(layer, other) for other in runs[-1]):
                runs[-1].append(layer)
            else:
                runs.append([layer])
            last = x
        grouped: set[Any] = set()
        for run in runs:
            if len(run) > 1 and not grouped.intersection(run):
                grouped.update(run)
                group = LinearGroup(tuple(run))
                self.groups = [other for other in self.groups if not set(run).intersection(other.layers)] + [group]
                for layer in run:
                    setattr(layer, _ATTRIBUTE, group)


def fuse_lora(model: torch.nn.Module) -> int:
    """Let the plain LoRA layers of a PEFT model run as one function each; returns how many there are.

    Layers with DoRA or another variant, or with a bias of the adapter's own, keep PEFT's. Which of them share an input, a pass
    within `lora_linears(model).observing()` shows.
    """
    groups = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            group = LinearGroup((module,))
            setattr(module, _ATTRIBUTE, group)
            # Bound to the instance, so PEFT, saving and merging see the class that they know.
            module.forward = types.MethodType(_forward, module)
            groups.append(group)
    setattr(model, _ATTRIBUTE, LoraLinears(groups))
    return len(groups)


def lora_linears(model: Any) -> LoraLinears | None:
    """Return the fused layers of a model; None where `fuse_lora` did not run."""
    linears: LoraLinears | None = getattr(model, _ATTRIBUTE, None)
    return linears


def trained_matrices(group: LinearGroup) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return A of a group, scaled, (sum of ranks, in_features), and each B, (rank, out_features); empty where it is off."""
    first, trained = group.layers[0], [matrix.detach() for layer in group.layers for matrix in _trained(layer)]
    dtype = first.base_layer.weight.dtype
    if first.disable_adapters or first.merged:
        return trained[0][:0].to(dtype), ()
    a = torch.cat(trained[0::2]) * first.scaling[_adapter(first)]
    return a.to(dtype), tuple(matrix.to(dtype).t() for matrix in trained[1::2])


def _is_plain(layer: Any) -> bool:
    """Return whether a LoRA layer has one adapter of two plain matrices: no DoRA or other variant, and no bias of its own."""
    return (
        len(layer.lora_A) == 1
        and not getattr(layer, "lora_variant", None)
        and isinstance(layer.lora_A[_adapter(layer)], torch.nn.Linear)
        and layer.lora_B[_adapter(layer)].bias is None
    )


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    is_in_force = not (layer.disable_adapters or layer.merged) and len(layer.lora_A) == 1
    if args or kwargs or not is_in_force or _adapter(layer) not in layer.active_adapters:
        result: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return result
    group: LinearGroup = getattr(layer, _ATTRIBUTE)
    return group.forward(layer, x)


def _takes(layer: Any, x: torch.Tensor) -> bool:
    """Return whether `_LoraProducts` computes the frozen layer too, as PEFT would; the adapter may be another member's."""
    base = layer.base_layer
    if len(layer.lora_A) != 1 or layer.disable_adapters or layer.merged or _adapter(layer) not in layer.active_adapters:
        return False
    if not isinstance(base, torch.nn.Linear) or any(parameter.requires_grad for parameter in base.parameters()):
        return False
    if "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
        return False
    dtype = product_dtype(base)
    cast_to = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return dtype is not None and cast_to == dtype and x.device == base.weight.device


def _fit_together(layer: Any, other: Any) -> bool:
    """Return whether two layers may be one call: they differ in sizes of their outputs and in rank only."""
    settings = [
        (each.scaling[_adapter(each)], _dropout(each), each.base_layer.in_features, product_dtype(each.base_layer))
        for each in (layer, other)
    ]
    return layer is not other and settings[0] == settings[1]


def _adapter(layer: Any) -> str:
    return str(next(iter(layer.lora_A.keys())))


def _dropout(layer: Any) -> float:
    """Return the dropout of a layer in training."""
    dropout = layer.lora_dropout[_adapter(layer)]
    return float(dropout.p) if isinstance(dropout, torch.nn.Dropout) else 0.0


def _trained(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.lora_A[_adapter(layer)].weight, layer.lora_B[_adapter(layer)].weight


def _version(x: torch.Tensor) -> int | None:
    return None if x.is_inference() else int(x._version)

"""LoRA layers as one autograd function, base and branch together: one layer, or several that get the same input.

The general way has a function for the frozen product and one for the branch. Each gives a gradient at the input, which
autograd adds, and queries, keys and values each give two of them. Here all products of a shared input are one function: its
input is saved once, the matrices A are multiplied as one, and the gradient at the input is summed in place.

Copies of A and B in the precision of products are made once for all passes of a step. 4-bit weights are written out into one
buffer for each device, in the forward pass and again in the backward pass.

Layers that this does not describe (a trained bias, another quantization, hooks) go the way of
`engine.training.ops.lora_branch`, and what that leaves to PEFT, PEFT computes.

Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685) for the products; Han et al. 2023, Unsloth, for the manual backward pass.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch.autograd.function import once_differentiable

from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.training.ops.frozen_weights import FrozenWeights, rows_of, wide_product
from engine.training.ops.lora_branch import DropoutMask, is_plain, quick_forward

_ATTRIBUTE = "_loratory_linears"  # of a model; of a layer, its group


class _Matrices(NamedTuple):
    """A and B of layers that share an input, in the precision of products."""

    a: torch.Tensor  # (sum of ranks, in_features), one below the other
    b: tuple[torch.Tensor, ...]  # (out_features, rank) each


@dataclass
class _StepCopies:
    """Copies of trained matrices that all passes of a step use, and of what they are copies."""

    matrices: _Matrices
    sources: tuple[tuple[int, int], ...] = ()  # address and version of each trained matrix; none while out of date


@dataclass
class _Waiting:
    """Outputs of layers that have not been asked for theirs yet."""

    x: torch.Tensor
    version: int | None
    outputs: dict[int, torch.Tensor]  # by the place of the layer in its group


@dataclass(eq=False)
class LinearGroup:
    """LoRA layers that are called one after the other with the same input, in that order; often one alone.

    The first that is called computes the outputs of all. They wait for the calls with that very tensor.
    """

    layers: tuple[Any, ...]
    weights: FrozenWeights
    copies: _StepCopies | None = None
    _waiting: _Waiting | None = None

    def forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the output of one of the layers."""
        place = next(number for number, own in enumerate(self.layers) if own is layer)
        if place and (output := self._take(place, x)) is not None:
            return output
        members = self.layers if place == 0 and all(_takes(own, x) for own in self.layers) else (layer,)
        if len(members) == 1 and not _takes(layer, x):
            return quick_forward(layer, x)
        first, *others = self._compute(members, x)
        self._waiting = _Waiting(x, _version(x), dict(enumerate(others, 1))) if others else None
        return first

    def forget(self) -> None:
        """Let go of outputs that nothing asked for, as where a recomputed pass ends early."""
        self._waiting = None

    def low(self, trained: Sequence[torch.Tensor], dtype: torch.dtype) -> _Matrices:
        """Return A and B, which `trained` has in turn, for products in `dtype`: the step's copies where there are any."""
        copies = self.copies
        if copies is not None and copies.sources and copies.sources == _sources(trained):
            return copies.matrices
        parts = [matrix.detach().to(dtype) for matrix in trained]
        return _Matrices(parts[0] if len(parts) == 2 else torch.cat(parts[0::2]), tuple(parts[1::2]))

    def _take(self, place: int, x: torch.Tensor) -> torch.Tensor | None:
        waiting = self._waiting
        if waiting is None or waiting.x is not x or waiting.version != _version(x):
            return None
        output = waiting.outputs.pop(place, None)
        if not waiting.outputs:
            self._waiting = None
        return output

    def _compute(self, layers: Sequence[Any], x: torch.Tensor) -> Sequence[torch.Tensor]:
        names = [next(iter(layer.lora_A.keys())) for layer in layers]
        pairs = [
            (layer.lora_A[name].weight, layer.lora_B[name].weight) for layer, name in zip(layers, names, strict=True)
        ]
        trained = [matrix for pair in pairs for matrix in pair]
        call = _Call(
            self,
            tuple(layer.base_layer for layer in layers),
            tuple(a.shape[0] for a, _ in pairs),
            float(layers[0].scaling[names[0]]),
            _dropout(layers[0], names[0]),
        )
        x = x.to(_dtype(layers[0].base_layer))
        with torch.autocast(x.device.type, enabled=False):  # every operand is in the precision of the product
            outputs = _LoraProducts.apply(x, call, *trained)
        return outputs if len(layers) > 1 else (outputs,)


@dataclass(frozen=True)
class _Call:
    """What one call of `_LoraProducts` needs besides tensors that may have gradients."""

    group: LinearGroup
    bases: tuple[torch.nn.Linear, ...]
    ranks: tuple[int, ...]
    scaling: float
    drop: float


class _LoraProducts(torch.autograd.Function):  # type: ignore[misc]
    """x Wᵀ + bias + scaling · dropout(x) Aᵀ Bᵀ for each layer of a call."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: _Call, *trained: torch.Tensor) -> Any:
        rows, ranks, scaling = rows_of(x), list(call.ranks), call.scaling
        a, b = call.group.low(trained, x.dtype)
        between = rows.new_empty(rows.shape[0], sum(ranks))  # scaled, so gradients of B need no scaling
        masks = [DropoutMask.draw(rows, call.drop) for _ in ranks] if call.drop else []
        if masks:
            scaling /= masks[0].keep
            for mask, part, own in zip(masks, between.split(ranks, 1), a.split(ranks), strict=True):
                part.addmm_(mask.apply(rows), own.t(), beta=0, alpha=scaling)
        else:
            between.addmm_(rows, a.t(), beta=0, alpha=scaling)
        outputs = []
        for base, part, own in zip(call.bases, between.split(ranks, 1), b, strict=True):
            output = call.group.weights.product(x, base)
            output.view(-1, output.shape[-1]).addmm_(part, own.t())
            outputs.append(output)
        ctx.save_for_backward(x, between, a, *b, *(mask.drawn for mask in masks))
        ctx.call, ctx.scaling, ctx.trained_dtype = call, scaling, trained[0].dtype
        ctx.masks = [(mask.keep, mask.seed) for mask in masks]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, (x, between, a, *saved) = ctx.call, ctx.saved_tensors
        call.group.forget()
        count, ranks = len(call.bases), list(call.ranks)
        b, drawn = saved[:count], saved[count:]
        masks = [DropoutMask(keep, seed, kept) for (keep, seed), kept in zip(ctx.masks, drawn, strict=True)]
        rows, grads = rows_of(x), [rows_of(gradient) for gradient in gradients]
        of_between, of_b = torch.empty_like(between), []
        for grad, part, own, matrix in zip(grads, of_between.split(ranks, 1), between.split(ranks, 1), b, strict=True):
            part.addmm_(grad, matrix, beta=0, alpha=ctx.scaling)
            of_b.append(wide_product(grad.t(), own, ctx.trained_dtype))
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(rows)
            for number, (grad, base) in enumerate(zip(grads, call.bases, strict=True)):
                # Not a variable: of 4-bit weights one at a time is written out.
                of_x.addmm_(grad, call.group.weights.of(base, x.dtype), beta=min(number, 1))
        if masks:
            of_a = []
            for mask, part, own in zip(masks, of_between.split(ranks, 1), a.split(ranks), strict=True):
                of_a.append(wide_product(part.t(), mask.apply(rows), ctx.trained_dtype))
                if of_x is not None:
                    of_x.add_(mask.apply(part @ own))
        else:
            of_a = list(wide_product(of_between.t(), rows, ctx.trained_dtype).split(ranks))
            if of_x is not None:
                of_x.addmm_(of_between, a)
        pairs = (matrix for pair in zip(of_a, of_b, strict=True) for matrix in pair)
        return (of_x if of_x is None else of_x.reshape(x.shape), None, *pairs)


@dataclass(eq=False)
class LoraLinears:
    """The plain LoRA layers of one model, which run as `_LoraProducts`."""

    groups: list[LinearGroup]
    copies: bool = field(default_factory=lambda: is_wanted("step_copies"))
    groups_inputs: bool = field(default_factory=lambda: is_wanted("shared_inputs"))

    @property
    def optimizations(self) -> dict[str, str]:
        """Why each optimization of `engine.config.optimizations` that is in this module is not used, "" where it is."""
        has_groups = any(len(group.layers) > 1 for group in self.groups)
        return {
            "fused_lora": "" if self.groups else "no layer has plain LoRA",
            "shared_inputs": "" if has_groups else "no layers have one input" if self.groups_inputs else LEFT_OUT,
            "step_copies": "" if self.copies else LEFT_OUT,
        }

    @contextmanager
    def step(self) -> Iterator[None]:
        """Make low-precision copies of the trained matrices, which all passes within the block use."""
        weights = {id(group.weights): group.weights for group in self.groups}.values()
        for one in weights:
            one.in_step = True
        try:
            if self.copies:
                self._copy()
            yield
        finally:
            for one in weights:
                one.in_step = False
            for group in self.groups:
                if group.copies is not None:
                    group.copies.sources = ()

    def _copy(self) -> None:
        to, of = [], []
        for group in self.groups:
            trained = [matrix for layer in group.layers for matrix in _trained(layer)]
            if group.copies is None:
                group.copies = _room_for_copies(group, trained)
            if group.copies is None:
                continue
            to += group.copies.matrices.a.split([a.shape[0] for a in trained[0::2]])
            of += [a.detach() for a in trained[0::2]]
            if trained[1].dtype == group.copies.matrices.a.dtype:
                group.copies.matrices = group.copies.matrices._replace(b=tuple(b.detach() for b in trained[1::2]))
            else:
                to += group.copies.matrices.b
                of += [b.detach() for b in trained[1::2]]
            group.copies.sources = _sources(trained)
        for device in {target.device for target in to}:  # one launch for many
            pairs = [(target, source) for target, source in zip(to, of, strict=True) if target.device == device]
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Watch a pass within the block; layers that it calls one after the other with the same input become a group."""
        if not self.groups_inputs:
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
        grouped: set[int] = set()
        for run in runs:
            if len(run) > 1 and not any(id(layer) in grouped for layer in run):
                grouped.update(id(layer) for layer in run)
                self._put(LinearGroup(tuple(run), self.groups[0].weights))

    def _put(self, group: LinearGroup) -> None:
        members = {id(layer) for layer in group.layers}
        self.groups = [other for other in self.groups if not members & {id(layer) for layer in other.layers}]
        self.groups.append(group)
        for layer in group.layers:
            setattr(layer, _ATTRIBUTE, group)


def fuse_lora(model: torch.nn.Module) -> int:
    """Let the plain LoRA layers of a PEFT model run as one function each; returns how many there are.

    Which of them share an input, a pass within `lora_linears(model).observing()` shows.
    """
    weights = FrozenWeights()
    groups = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and is_plain(module):
            group = LinearGroup((module,), weights)
            setattr(module, _ATTRIBUTE, group)
            # Bound to the instance, so PEFT, saving and merging see the class that they know.
            module.forward = types.MethodType(_forward, module)
            groups.append(group)
    setattr(model, _ATTRIBUTE, LoraLinears(groups))
    return len(groups)


def lora_linears(model: Any) -> LoraLinears | None:
    """Return what `fuse_lora` put on a model; None where it did not run."""
    found: LoraLinears | None = getattr(model, _ATTRIBUTE, None)
    return found


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args or kwargs:
        return quick_forward(layer, x, *args, **kwargs)
    group: LinearGroup = getattr(layer, _ATTRIBUTE)
    return group.forward(layer, x)


def _takes(layer: Any, x: torch.Tensor) -> bool:
    """Whether `_LoraProducts` computes this layer for this input as PEFT would."""
    names, base = list(layer.lora_A.keys()), layer.base_layer
    if len(names) != 1 or layer.disable_adapters or layer.merged or names[0] not in layer.active_adapters:
        return False
    if not isinstance(base, torch.nn.Linear) or any(parameter.requires_grad for parameter in base.parameters()):
        return False
    if "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
        return False
    dtype = _dtype(base)
    cast_to = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return dtype is not None and cast_to == dtype and x.device == base.weight.device


def _dtype(base: Any) -> torch.dtype | None:
    """Return what a frozen layer multiplies in; None where its weight is in no format that is known here."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.dtype if type(base) is torch.nn.Linear and base.weight.is_floating_point() else None
    fits = tuple(state.shape) == (base.out_features, base.in_features)
    repacked = getattr(state, "packing_format_for_cpu", False)
    found: torch.dtype | None = getattr(base, "compute_dtype", None)
    return found if fits and not repacked and base.compute_type_is_set else None


def _fit_together(one: Any, other: Any) -> bool:
    """Whether two layers may be one call: they differ in sizes of their outputs and in rank only."""
    names = [next(iter(layer.lora_A.keys())) for layer in (one, other)]
    settings = [
        (
            layer.scaling[name],
            _dropout(layer, name, in_training=True),
            layer.base_layer.in_features,
            _dtype(layer.base_layer),
        )
        for layer, name in zip((one, other), names, strict=True)
    ]
    return one is not other and settings[0] == settings[1]


def _dropout(layer: Any, name: str, *, in_training: bool | None = None) -> float:
    dropout = layer.lora_dropout[name]
    trains = layer.training if in_training is None else in_training
    return float(dropout.p) if trains and isinstance(dropout, torch.nn.Dropout) else 0.0


def _trained(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    name = next(iter(layer.lora_A.keys()))
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _room_for_copies(group: LinearGroup, trained: Sequence[torch.Tensor]) -> _StepCopies | None:
    """Allocate copies of a group's matrices; None where products take the matrices as they are, or these are sharded."""
    dtype = _dtype(group.layers[0].base_layer)
    if dtype is None or any(type(matrix) is not torch.nn.Parameter for matrix in trained):
        return None
    if len(group.layers) == 1 and trained[0].dtype == dtype:
        return None
    first = trained[0]
    a = torch.empty(sum(a.shape[0] for a in trained[0::2]), first.shape[1], dtype=dtype, device=first.device)
    b = tuple(
        matrix.detach() if matrix.dtype == dtype else torch.empty_like(matrix, dtype=dtype, requires_grad=False)
        for matrix in trained[1::2]
    )
    return _StepCopies(_Matrices(a, b))


def _sources(trained: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Where matrices are and how often they were written: other weights may be put in their place within a step."""
    return tuple((matrix.data_ptr(), matrix._version) for matrix in trained)


def _version(x: torch.Tensor) -> int | None:
    return None if x.is_inference() else int(x._version)

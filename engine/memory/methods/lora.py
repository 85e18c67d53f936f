"""LoRA as PEFT and as Loratory run it, DoRA, and AdaLoRA."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory.autograd.tape import Tape
from loratory.engine.memory.autograd.tensors import Gradients, Parameter, Storage, Value, needs_gradient, share
from loratory.engine.memory.layers.modules import autocast_linear, base_projection
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods.base import MemoryRule, add_branch, as_view, base_result, multiply_with_weight
from loratory.engine.memory.persistent import TensorShape, dequantized_scale_bytes
from loratory.engine.memory.workload import Workload
from loratory.engine.models.shape import ModuleShape


class LoraMemory(MemoryRule):
    """Two matrices for each layer, and with DoRA a vector."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return A, (r, in_features), and B, (out_features, r): Hu et al. 2021, section 4.1."""
        low_rank = ((adapter.r, module.in_features), (module.out_features, adapter.r))
        # DoRA's magnitude has one entry per row of W: https://arxiv.org/abs/2402.09353, equation 5.
        return (*low_rank, (module.out_features,)) if adapter.use_dora else low_rank

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """Use Loratory's own functions where the trainer does."""
        if is_fused(r.workload, module, x.width):
            return _fused(r, x, (module,))[0]
        if r.workload.has_quick_layers:
            return _with_quick_lora(r, x, module)
        return _with_lora(r, x, module)

    def project_together(self, r: StepContext, x: Value, modules: Sequence[ModuleShape]) -> Sequence[Value] | None:
        """Compute layers with one input as one function, where each would be one."""
        return _fused(r, x, modules) if all(is_fused(r.workload, module, x.width) for module in modules) else None


def _with_lora(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`base(x) + lora_B(lora_A(dropout(x))) * scaling`, with PEFT's casts to and from the adapter's own precision.

    Keeps the cast x, the dropout mask, and the product with A.

    Source: `Linear.forward` in peft/tuners/lora/layer.py, `Linear4bit.forward` in peft/tuners/lora/bnb.py.
    """
    tape, workload = r.tape, r.workload
    adapter, quantized = workload.adapter, workload.quantizes(module)
    result = base_result(r, x, module)
    result_width = result.width
    casts = not (quantized and r.peft_sees_autocast)
    inner = tape.cast(x, workload.precision.adapter) if casts else tape.alias(x)
    if adapter.lora_dropout > 0:
        inner = tape.dropout(inner, on_cuda=r.on_cuda)
    if adapter.use_dora:
        return add_branch(r, result, _dora_part(r, inner, result, module), result_width)
    scaled = _through_both(r, tape.alias(inner) if adapter.lora_dropout == 0 else inner, module, _matrices(r, module))
    scaled = tape.assign(scaled, tape.scale(scaled))
    if quantized and casts:
        scaled = tape.assign(scaled, tape.cast(scaled, result_width))
    return add_branch(r, result, scaled, result_width)


def _matrices(r: StepContext, module: ModuleShape) -> tuple[Parameter, Parameter]:
    rank = r.workload.adapter.r
    return r.adapter_weight(module.in_features * rank), r.adapter_weight(module.out_features * rank)


@in_scope
def _through_both(r: StepContext, x: Value, module: ModuleShape, matrices: tuple[Parameter, Parameter]) -> Value:
    """`lora_B(lora_A(x))`; x, which no variable holds, is released as soon as A has read it."""
    down = r.tape.assign(x, autocast_linear(r, x, matrices[0], r.workload.adapter.r))
    return autocast_linear(r, down, matrices[1], module.out_features)


@in_scope
def _dora_part(r: StepContext, x: Value, result: Value, module: ModuleShape) -> Value:
    """`(m/|W + BA| - 1) * base + m/|W + BA| * low_rank * scaling`, with matrices of W's size for the norm.

    Keeps the base result and the low-rank result; with dropout the base result is computed again from the weight.

    Source: `DoraLinearLayer.forward`, peft/tuners/lora/dora.py; Liu et al. 2024 (arXiv:2402.09353).
    """
    tape, weights = r.tape, module.in_features * module.out_features
    matrices = _matrices(r, module)
    before = tape.position
    identity = tape.value(module.in_features**2, r.workload.precision.adapter)
    update = tape.assign(identity, _through_both(r, tape.alias(identity), module, matrices))
    update = tape.assign(update, tape.cast(update, x.width))
    weight = _written_out_weight(r, module, x.width)
    scaled_update = tape.value(weights, x.width)
    tape.use(weights * x.width)
    tape.drop(scaled_update)
    norm = tape.value(module.out_features, x.width)
    after_norm = tape.position
    magnitude = r.adapter_weight(module.out_features)
    ratio = tape.operation((magnitude,), magnitude.elements, magnitude.width, saved=(norm,))
    low = _through_both(r, tape.alias(x), module, matrices)
    if r.workload.adapter.lora_dropout > 0:
        base = autocast_linear(r, x, Parameter(weights, x.width), module.out_features)
    else:
        base = tape.alias(result)
    less_one = tape.scale(ratio)
    first = tape.assign(less_one, tape.multiply(base, less_one))
    second = tape.multiply(low, ratio)
    scaled = tape.assign(second, tape.scale(second))
    both = tape.add(first, scaled)
    # The update's own graph ends here: only its norm was wanted.
    tape.drop(first, scaled, low, ratio, base, norm, update, weight)
    tape.forget(before, after_norm)
    return both


def _written_out_weight(r: StepContext, module: ModuleShape, width: int) -> Value:
    """Return the base weight at x's precision: a copy where it is quantized or held in another."""
    quantized = r.workload.quantizes(module)
    elements = module.in_features * module.out_features
    if quantized:
        r.tape.use(elements * r.workload.precision.compute)
    is_copy = quantized or r.workload.precision.weights != width
    return r.tape.value(elements if is_copy else 0, width)


def is_fused(workload: Workload, module: ModuleShape, width: int) -> bool:
    """Return whether base and branch of an adapted layer are one function, for inputs of `width` bytes an element.

    Source: `_takes`, engine/training/ops/lora_linear.py.
    """
    adapter, precision = workload.adapter, workload.precision
    if not workload.has_quick_layers or module.kind != "linear":
        return False
    if adapter.bias != "none" and module.has_bias:
        return False
    own = precision.head if module.is_output_head else precision.weights
    if workload.quantizes(module):
        if workload.base not in ("nf4", "fp4") or workload.sharded > 1:
            return False
        own = precision.compute
    return own == (precision.autocast or width)


class _FusedCall(NamedTuple):
    """What the backward pass of fused layers knows of their forward pass."""

    modules: Sequence[ModuleShape]
    matrices: Sequence[tuple[Parameter, Parameter]]  # A and B of each module
    width: int  # bytes per element of the products
    input_bytes: int
    hidden_bytes: int  # of the products with A, all together
    needs_grad_x: bool
    drops: bool


def _fused(r: StepContext, x: Value, modules: Sequence[ModuleShape]) -> Sequence[Value]:
    """Run base and branch of layers with one input as one function.

    Keeps the input, the products with A, copies of A and B at the products' precision, and on CUDA the masks of dropout.
    4-bit weights are written out one after the other.

    Source: `_LoraProducts`, engine/training/ops/lora_linear.py.
    """
    tape, workload = r.tape, r.workload
    drops, width = workload.adapter.lora_dropout > 0, workload.precision.autocast or x.width
    matrices = [_matrices(r, module) for module in modules]
    narrow = tape.cast(x, width)
    rows = x.elements // modules[0].in_features
    copies = _cast_matrices(r, matrices, width)
    hidden = tape.value(rows * workload.adapter.r * len(modules), width)
    masks = [tape.value(narrow.elements, 1) for _ in modules if drops and r.on_cuda]
    if drops:
        tape.use(narrow.size)
    outputs = []
    for module in modules:
        outputs.append(tape.value(rows * module.out_features, width))
        _write_out(r, module)
    call = _FusedCall(modules, matrices, width, narrow.size, hidden.size, needs_gradient(narrow), drops)
    backward = partial(_fused_backward, r, call)
    tape.record(outputs, (narrow, *chain(*matrices)), backward, [narrow, hidden, *copies, *masks])
    return outputs


def _fused_backward(r: StepContext, call: _FusedCall, _: Storage) -> Gradients:
    """Compute the gradients of the products with A, of each B, of the input, then of A: under each mask, or all at once."""
    tape = r.tape
    grad_hidden = tape.allocate(call.hidden_bytes)
    weight_gradients = partial(_weight_gradients, tape, call.width, answers_wide=r.on_cuda)
    grad_b = [weight_gradients(b)[0] for _, b in call.matrices]
    grad_x = tape.allocate(call.input_bytes) if call.needs_grad_x else None
    if grad_x is not None:
        for module in call.modules:
            _write_out(r, module)
    each_a, grad_a = [a for a, _ in call.matrices], list[Storage]()
    for a in each_a if call.drops else ():
        masked_input = tape.allocate(call.input_bytes)
        grad_a += weight_gradients(a)
        tape.release(masked_input)
        if grad_x is not None:
            tape.use(call.input_bytes, call.input_bytes)
    grad_a = grad_a or weight_gradients(*each_a)
    tape.release(grad_hidden)
    return (grad_x, *chain(*zip(grad_a, grad_b, strict=True)))


def _weight_gradients(tape: Tape, width: int, *weights: Parameter, answers_wide: bool = False) -> list[Storage]:
    """Allocate the gradients of weights of one product, which is `width` wide unless it answers at their own width."""
    direct = answers_wide or weights[0].width == width
    product = tape.allocate(0 if direct else sum(weight.elements for weight in weights) * width)
    gradients = [tape.allocate(weight.size) for weight in weights]
    tape.release(product)
    return gradients


def _cast_matrices(r: StepContext, matrices: Sequence[tuple[Parameter, Parameter]], width: int) -> list[Value]:
    """Copy A and B: all A stacked, each B by itself. Return what is kept for one call and not to the end of the step."""
    upper, lower = [a for a, _ in matrices], [b for _, b in matrices]
    is_copied = upper[0].width != width
    sizes = [sum(a.elements for a in upper) if is_copied or len(upper) > 1 else 0]
    sizes += [b.elements if is_copied else 0 for b in lower]
    if r.workload.sharded > 1 or r.workload.checkpointing:
        return [r.tape.value(size, width) for size in sizes]
    r.tape.allocate(sum(sizes) * width)
    return []


def _write_out(r: StepContext, module: ModuleShape) -> None:
    """Write out a 4-bit weight as it is multiplied, with its scales at 32 bits."""
    workload, elements = r.workload, module.in_features * module.out_features
    if workload.quantizes(module):
        scales = dequantized_scale_bytes(elements) if workload.double_quant else 0
        r.tape.use(scales, elements * workload.precision.compute)


def _with_quick_lora(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Add the branch in place to the result of a layer that keeps a function of its own.

    Keeps the layer's input, the product with A, both matrices at the result's precision, and on CUDA the dropout mask.

    Source: engine/training/ops/lora_linear.py.
    """
    tape, adapter = r.tape, r.workload.adapter
    drops = adapter.lora_dropout > 0
    a, b = _matrices(r, module)
    result = base_projection(r, x, module)
    width = result.width
    narrow = tape.cast(x, width)
    input_size, needs_grad_x = narrow.size, needs_gradient(narrow)
    masks = [tape.value(narrow.elements, 1)] if drops and r.on_cuda else []
    tape.value(narrow.elements if drops else 0, width)
    a_copy = tape.value(a.elements if width != a.width else 0, width)
    tape.use(b.size)
    b_copy = tape.value(b.elements, width)
    hidden = tape.value(x.elements // module.in_features * adapter.r, width)
    hidden_size = hidden.size

    def backward(gradient: Storage) -> Gradients:
        dropped_input = tape.allocate(input_size if drops else 0)
        grad_hidden = tape.allocate(hidden_size)
        (grad_b,), (grad_a,) = (_weight_gradients(tape, width, weight) for weight in (b, a))
        grad_x = tape.allocate(input_size) if needs_grad_x else None
        if grad_x is not None and drops:
            masked = tape.allocate(input_size)
            tape.release(grad_x)
            grad_x = masked
        tape.release(grad_hidden)
        tape.release(dropped_input)
        return (share(gradient), grad_x, grad_a, grad_b)

    saved = [narrow, hidden, a_copy, b_copy, *masks]
    return tape.operation_in_place(result, (result, narrow, a, b), backward, saved)


class AdaLoraMemory(MemoryRule):
    """Ranks are masked, not removed: every step has the first rank."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return A, E and B of `AdaLoraLayer.update_layer`."""
        rank = adapter.init_r
        return ((rank, module.in_features), (rank, 1), (module.out_features, rank))

    def frozen_parameters(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:  # noqa: ARG002
        """Count `ranknum`, one number for each layer."""
        return len(targets)

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Count sensitivity, its mean and its uncertainty, which `RankAllocator` keeps of every weight."""
        rank = adapter.init_r
        return 3 * sum(rank * (module.in_features + module.out_features + 1) for module in targets)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(x) + dropout(x) @ (A * E).T @ B.T * scaling / ranknum`.

        Source: `SVDLinear.forward` in peft/tuners/adalora/layer.py, `SVDLinear4bit.forward` in peft/tuners/adalora/bnb.py.
        """
        tape, workload = r.tape, r.workload
        rank, quantized = workload.adapter.init_r, workload.quantizes(module)
        result = base_result(r, x, module)
        casts = not (quantized and r.peft_sees_autocast)
        inner = tape.cast(x, workload.precision.adapter) if casts else tape.alias(x)
        inner = r.drop_out(inner, workload.adapter.lora_dropout)
        singular = r.adapter_weight(rank)
        rows = tape.multiply(as_view(r, r.adapter_weight(rank * module.in_features)), singular)
        down = multiply_with_weight(r, inner, rows, rank)
        left = as_view(r, r.adapter_weight(rank * module.out_features))
        up = multiply_with_weight(r, down, left, module.out_features)
        if quantized:
            up = tape.assign(up, tape.cast(up, result.width))
        scaled = tape.assign(up, tape.scale(up))
        scaled = tape.assign(scaled, tape.scale(scaled, width=4))  # by a number that is held at 32 bits
        return tape.add(result, scaled) if quantized and workload.base == "int8" else _add_in_place(r, result, scaled)


def _add_in_place(r: StepContext, result: Value, update: Value) -> Value:
    """Compute `result += update`: the result keeps its precision, and the update's gradient gets the update's."""
    size, casts, needs = update.size, update.width != result.width, needs_gradient(result)

    def backward(gradient: Storage) -> Gradients:
        return (share(gradient) if needs else None, r.tape.allocate(size) if casts else share(gradient))

    return r.tape.operation_in_place(result, (result, update), backward)

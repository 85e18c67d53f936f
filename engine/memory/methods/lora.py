"""LoRA as PEFT and as Loratory run it, and DoRA."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.operations import add, assign, cast, clone, dropout, multiply, scale, share
from engine.memory.autograd.tensors import Gradients, Group, Parameter, Storage, Value, needs_gradient
from engine.memory.layers.projections import autocast_linear, base_projection, is_quantized
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModelShape, ModuleShape


class LoraMemory(MemoryRule):
    """Two matrices for each layer, and with DoRA a vector."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """A is (r, in_features), B is (out_features, r): Hu et al. 2021, section 4.1."""
        low_rank = ((adapter.r, module.in_features), (module.out_features, adapter.r))
        # DoRA's magnitude has one entry per row of W: https://arxiv.org/abs/2402.09353, equation 5.
        return (*low_rank, (module.out_features,)) if adapter.use_dora else low_rank

    def trained_biases(
        self, shape: ModelShape, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]
    ) -> tuple[TensorShape, ...]:
        """Source: PEFT `LoraModel._mark_only_adapters_as_trainable`."""
        if adapter.bias == "none":
            return ()
        chosen = shape.modules if adapter.bias == "all" else targets
        return tuple((module.bias_parameters,) for module in chosen if module.has_bias)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """Use Loratory's own branch where the trainer does."""
        if r.workload.lora_branch == "quick" and not r.workload.adapter.use_dora:
            return _with_quick_lora(r, x, module)
        return _with_lora(r, x, module)


def _with_lora(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`base(x) + lora_B(lora_A(dropout(x))) * scaling`, with PEFT's casts to and from the adapter's own precision.

    Keeps the cast x, the dropout mask, and the product with A.

    Source: `Linear.forward` in peft/tuners/lora/layer.py, `Linear4bit.forward` in peft/tuners/lora/bnb.py.
    """
    tape, workload = r.tape, r.workload
    adapter, precision = workload.adapter, workload.precision
    quantized = is_quantized(r, module)
    with tape.scope() as scope:
        result = base_projection(r, x, module)
        answered = result.width
        if quantized and workload.base in ("nf4", "fp4"):
            result = assign(tape, result, clone(tape, result))
        casts = not (quantized and r.peft_sees_autocast)
        inner = cast(tape, x, precision.adapter) if casts else tape.alias(x)
        if adapter.lora_dropout > 0:
            inner = dropout(tape, inner, on_cuda=r.on_cuda)
        if adapter.use_dora:
            part = _dora_part(r, inner, result, module)
            result = assign(tape, result, add(tape, result, part))
            tape.drop(part)
            return scope.returns(assign(tape, result, cast(tape, result, answered)))
        scaled = _low_rank(r, tape.alias(inner) if adapter.lora_dropout == 0 else inner, module)
        if quantized and casts:
            scaled = assign(tape, scaled, cast(tape, scaled, answered))
        result = assign(tape, result, add(tape, result, scaled))
        tape.drop(scaled)
        return scope.returns(assign(tape, result, cast(tape, result, answered)))


def _low_rank(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`lora_B(lora_A(x)) * scaling`."""
    rank = r.workload.adapter.r
    with r.tape.scope() as scope:
        matrices = (r.adapter_weight(module.in_features * rank), r.adapter_weight(module.out_features * rank))
        product = _through_both(r, x, module, matrices)
        return scope.returns(scale(r.tape, product))


def _through_both(
    r: StepContext, x: Value, module: ModuleShape, matrices: tuple[Parameter, Parameter], *, x_is_temporary: bool = True
) -> Value:
    """`lora_B(lora_A(x))`; an x that no variable holds is released as soon as A has read it."""
    tape = r.tape
    with tape.scope() as scope:
        down = autocast_linear(r, x, matrices[0], r.workload.adapter.r)
        if x_is_temporary:
            tape.drop(x)
        return scope.returns(autocast_linear(r, down, matrices[1], module.out_features))


def _dora_part(r: StepContext, x: Value, result: Value, module: ModuleShape) -> Value:
    """`(m/|W + BA| - 1) * base + m/|W + BA| * low_rank * scaling`, with matrices of W's size for the norm.

    Keeps the base result and the low-rank result; with dropout the base result is computed again from the weight.

    Source: `DoraLinearLayer.forward`, peft/tuners/lora/dora.py; Liu et al. 2024 (arXiv:2402.09353).
    """
    tape, precision = r.tape, r.workload.precision
    rank, weights = r.workload.adapter.r, module.in_features * module.out_features
    matrices = (r.adapter_weight(module.in_features * rank), r.adapter_weight(module.out_features * rank))
    with tape.scope() as scope:
        before = tape.position
        identity = tape.value(module.in_features**2, precision.adapter, group=Group.WEIGHT_COPIES)
        update = _through_both(r, identity, module, matrices, x_is_temporary=False)
        tape.drop(identity)
        update = assign(tape, update, cast(tape, update, x.width))
        weight = _written_out_weight(r, module, x.width)
        scaled_update = tape.value(weights, x.width, group=Group.WEIGHT_COPIES)
        tape.use(weights * x.width, group=Group.WEIGHT_COPIES)
        tape.drop(scaled_update)
        norm = tape.value(module.out_features, x.width)
        recorded = tape.position
        magnitude = r.adapter_weight(module.out_features)
        size = magnitude.elements * magnitude.width
        ratio = tape.operation(
            (magnitude,),
            elements=magnitude.elements,
            width=magnitude.width,
            backward=lambda _: (tape.allocate(size),),
            saved=(norm,),
        )
        low = _through_both(r, tape.alias(x), module, matrices)
        if r.workload.adapter.lora_dropout > 0:
            frozen = Parameter(weights, x.width)
            base = autocast_linear(r, x, frozen, module.out_features)
        else:
            base = tape.alias(result)
        less_one = scale(tape, ratio)
        first = multiply(tape, base, less_one)
        tape.drop(less_one)
        second = multiply(tape, low, ratio)
        scaled = scale(tape, second)
        tape.drop(second)
        both = add(tape, first, scaled)
        tape.drop(first, scaled, low, ratio, base)
        # The update's own graph ends here: only its norm was wanted.
        tape.drop(norm, update, weight)
        tape.forget(before, recorded)
        return scope.returns(both)


def _written_out_weight(r: StepContext, module: ModuleShape, width: int) -> Value:
    """The base weight at x's precision: a copy where it is quantized or held in another."""
    quantized = is_quantized(r, module)
    elements = module.in_features * module.out_features
    if quantized:
        r.tape.use(elements * r.workload.precision.compute, group=Group.WEIGHT_COPIES)
    copied = quantized or r.workload.precision.weights != width
    return r.tape.value(elements if copied else 0, width, group=Group.WEIGHT_COPIES)


def _with_quick_lora(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Loratory's own branch: added into the layer's result in place, at the result's precision.

    Keeps the layer's input, the product with A, both matrices at the result's precision, and on CUDA the dropout mask.

    Source: engine/training/ops/lora_branch.py.
    """
    tape, adapter = r.tape, r.workload.adapter
    rank, drops = adapter.r, adapter.lora_dropout > 0
    a, b = r.adapter_weight(module.in_features * rank), r.adapter_weight(module.out_features * rank)
    with tape.scope() as scope:
        result = base_projection(r, x, module)
        width = result.width
        narrow = cast(tape, x, width)
        rows = x.elements // module.in_features
        input_size, x_needs = narrow.elements * width, needs_gradient(narrow)
        mask_bytes = narrow.elements if drops and r.on_cuda else 0
        mask = tape.value(mask_bytes, 1)
        tape.value(narrow.elements if drops else 0, width)
        a_low = tape.value(a.elements if width != a.width else 0, width)
        tape.use(b.elements * b.width)
        b_low = tape.value(b.elements, width)
        between = tape.value(rows * rank, width)

        def backward(gradient: Storage) -> Gradients:
            again = tape.allocate(input_size if drops else 0)
            of_between = tape.allocate(rows * rank * width)
            of_b = tape.allocate(b.elements * width)
            of_b = _widened(r, of_b, b)
            of_a = tape.allocate(a.elements * width)
            of_a = _widened(r, of_a, a)
            of_x = None
            if x_needs:
                of_x = tape.allocate(input_size)
                if drops:
                    masked = tape.allocate(input_size)
                    tape.release(of_x)
                    of_x = masked
            tape.release(of_between)
            tape.release(again)
            return (share(gradient), of_x, of_a, of_b)

        saved = [narrow, between, a_low, b_low, *([mask] if mask_bytes else [])]
        return scope.returns(tape.operation_in_place(result, (result, narrow, a, b), backward=backward, saved=saved))


def _widened(r: StepContext, gradient: Storage, parameter: Parameter) -> Storage:
    size = parameter.elements * parameter.width
    if gradient.size == size:
        return gradient
    wide = r.tape.allocate(size)
    r.tape.release(gradient)
    return wide

"""Normalization layers, operation by operation."""

from engine.memory.autograd.operations import cast, multiply, pointwise, scale
from engine.memory.autograd.tensors import Gradients, Parameter, Storage, Value
from engine.memory.layers.step_context import StepContext
from engine.models.shape import ModuleShape


def normalize(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """Apply a norm over the last dimension of x."""
    if norm.class_name.startswith("Gemma") and not r.workload.fused_norms:
        return _gemma_norm(r, x, norm)
    if norm.class_name.endswith("RMSNorm") or not norm.class_name.startswith("LayerNorm"):
        return rms_norm(r, x, norm)
    return layer_norm(r, x, norm)


def rms_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """Root-mean-square norm as transformers writes it: at 32 bits, one operation after the other.

    Keeps x at 32 bits (x itself where it has 32 bits already) and one factor per row; with trained weights also the
    normalized x.

    Source: `LlamaRMSNorm.forward`, transformers/models/llama/modeling_llama.py.
    """
    if r.workload.fused_norms:
        return _fused_rms_norm(r, x, norm)
    tape = r.tape
    width = norm.out_features or norm.parameters
    with tape.scope() as scope:
        normalized = _normalized(r, x, width)
        narrow = cast(tape, normalized, x.width)
        if not norm.parameters:
            return scope.returns(narrow)
        weight = r.weight(width, r.workload.precision.norms)
        return scope.returns(multiply(tape, narrow, weight))


def _gemma_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """The same, multiplied at 32 bits by one more than the weight, which is kept; narrowed last.

    Source: `Gemma2RMSNorm.forward`, transformers/models/gemma2/modeling_gemma2.py, which all of the family have.
    """
    tape = r.tape
    width = norm.out_features or norm.parameters
    with tape.scope() as scope:
        normalized = _normalized(r, x, width)
        weight = r.weight(width, r.workload.precision.norms)
        as_wide = _at_32_bits(r, weight)
        factor = scale(tape, as_wide)
        tape.drop(as_wide)
        wide = multiply(tape, normalized, factor)
        tape.drop(normalized, factor)
        return scope.returns(cast(tape, wide, x.width))


def _at_32_bits(r: StepContext, weight: Parameter) -> Value:
    """`weight.float()`: the weight itself where it has 32 bits already."""
    tape, size = r.tape, weight.elements * weight.width
    if weight.width < 4:
        return tape.operation((weight,), elements=weight.elements, width=4, backward=lambda _: (tape.allocate(size),))
    itself = tape.value(0, 4)
    itself.elements, itself.producer = weight.elements, weight if weight.trainable else None
    return itself


def _normalized(r: StepContext, x: Value, width: int) -> Value:
    """x at 32 bits over the root of its mean square."""
    tape = r.tape
    with tape.scope() as scope:
        wide = cast(tape, x, 4)
        squares = _square(r, wide)
        variance = _mean(r, squares, x.elements // width)
        tape.drop(squares)
        shifted = scale(tape, variance)
        inverse = pointwise(tape, shifted, saves_result=True, scratch=2)
        tape.drop(shifted)
        return scope.returns(multiply(tape, wide, inverse))


def _fused_rms_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """One kernel: keeps x itself and one factor per row.

    Source: `Fast_RMS_Layernorm`, unsloth/kernels/rms_layernorm.py; `LigerRMSNormFunction`, liger_kernel/ops/rms_norm.py.
    """
    tape, size = r.tape, x.elements * x.width
    weight = r.weight(norm.out_features, r.workload.precision.norms)
    factors = tape.value(x.elements // norm.out_features, 4)

    def backward(_: Storage) -> Gradients:
        of_weight = tape.allocate(weight.elements * weight.width) if weight.trainable else None
        return (tape.allocate(size), of_weight)

    result = tape.operation(
        (x, weight), elements=x.elements, width=x.width, backward=backward, saved=(x, weight, factors)
    )
    tape.drop(factors)
    return result


def _square(r: StepContext, x: Value) -> Value:
    """`x.pow(2)`; its gradient `grad * (2 * x.pow(1))` holds two tensors besides the result."""
    tape, size = r.tape, x.elements * x.width

    def backward(_: Storage) -> Gradients:
        power = tape.allocate(size)
        doubled = tape.allocate(size)
        result = tape.allocate(size)
        tape.release(doubled)
        tape.release(power)
        return (result,)

    return tape.operation((x,), elements=x.elements, width=x.width, backward=backward, saved=(x,))


def _mean(r: StepContext, x: Value, rows: int) -> Value:
    """Mean over the last dimension; its gradient is written out at x's size."""
    tape, size = r.tape, x.elements * x.width

    def backward(_: Storage) -> Gradients:
        return (tape.allocate(size),)

    return tape.operation((x,), elements=rows, width=x.width, backward=backward)


def layer_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """`torch.nn.LayerNorm`, one kernel: keeps x, and mean and inverse deviation per row.

    Under autocast on CUDA it computes and answers at 32 bits.

    Source: `native_layer_norm` in derivatives.yaml.
    """
    tape = r.tape
    rows = x.elements // norm.out_features
    weight = r.weight(norm.out_features, r.workload.precision.norms)
    with tape.scope() as scope:
        if r.workload.precision.autocast and r.on_cuda:
            x = cast(tape, x, 4)
        size = x.elements * x.width
        # A processor keeps them as narrow as x where weights are as narrow; a GPU always at 32 bits.
        statistics = tape.value(rows * 2, 4 if r.on_cuda else max(x.width, weight.width))

        def backward(_: Storage) -> Gradients:
            of_x = tape.allocate(size)
            of_weight = tape.allocate(weight.elements * weight.width) if weight.trainable else None
            return (of_x, of_weight)

        result = tape.operation(
            (x, weight),
            elements=x.elements,
            width=x.width,
            backward=backward,
            saved=(x, weight, statistics, statistics),
        )
        return scope.returns(result)

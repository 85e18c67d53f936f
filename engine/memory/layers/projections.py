"""Linear layers in the format that their base weights are held in: dense, 4-bit, 8-bit."""

from engine.memory.autograd.operations import cast, linear
from engine.memory.autograd.tensors import Gradients, Group, Parameter, Storage, Value
from engine.memory.layers.step_context import StepContext
from engine.memory.persistent import dequantized_scale_bytes
from engine.models.shape import ModuleShape


def base_projection(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Send x through one linear layer without its adapter."""
    if not is_quantized(r, module):
        return _dense(r, x, module)
    if r.workload.base == "int8":
        return _int8(r, x, module)
    return _four_bit(r, x, module)


def is_quantized(r: StepContext, module: ModuleShape) -> bool:
    """Whether this layer's weight is held in the base's quantized format."""
    return r.workload.quantizes(module)


def _dense(r: StepContext, x: Value, module: ModuleShape) -> Value:
    precision = r.workload.precision
    width = precision.head if module.is_output_head else precision.weights
    weight = r.weight(module.in_features * module.out_features, width)
    bias = r.weight(module.out_features, width) if module.has_bias else None
    return autocast_linear(r, x, weight, module.out_features, bias)


def autocast_linear(
    r: StepContext, x: Value, weight: Parameter, out_features: int, bias: Parameter | None = None
) -> Value:
    """A matrix product; under autocast both sides are cast first.

    Source: at::autocast `cached_cast`, aten/src/ATen/autocast_mode.cpp.
    """
    tape, target = r.tape, r.workload.precision.autocast
    if target is None:
        return linear(tape, x, weight, out_features, bias)
    with tape.scope() as scope:
        x = cast(tape, x, target)
        if weight.width == target:
            return scope.returns(linear(tape, x, weight, out_features, bias))
        return scope.returns(linear(tape, x, r.cast_weight(weight, target), out_features, bias))


def _four_bit(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """A 4-bit layer: the weight is written out at compute precision, forward and backward, and released.

    The packed weight is an attribute of the autograd node, so nothing is saved.

    Source: `Linear4bit.forward` and `MatMul4Bit`, bitsandbytes/autograd/_functions.py.
    """
    tape, workload = r.tape, r.workload
    compute = workload.precision.compute
    elements = module.in_features * module.out_features
    nested = workload.double_quant and workload.base in ("nf4", "fp4")
    scales = dequantized_scale_bytes(elements) if nested else 0
    with tape.scope() as scope:
        narrow = cast(tape, x, compute)
        size = narrow.elements * compute
        tape.use_scratch(scales, scales, group=Group.WEIGHT_COPIES)
        written_out = tape.allocate_scratch(elements * compute + scales, Group.WEIGHT_COPIES)

        def backward(_: Storage) -> Gradients:
            tape.use(scales, scales, group=Group.WEIGHT_COPIES)
            again = tape.allocate(elements * compute, Group.WEIGHT_COPIES)
            of_x = tape.allocate(size)
            tape.release(again)
            return (of_x,)

        product = tape.operation(
            (narrow,), elements=x.elements // module.in_features * module.out_features, width=compute, backward=backward
        )
        tape.release(written_out)
        return scope.returns(cast(tape, product, x.width))


def _int8(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """An 8-bit layer. It keeps its input as an attribute of the autograd node, out of checkpointing's reach.

    On CUDA the input is quantized row by row and multiplied as integers; on the CPU the weight is written out.

    Source: `MatMul8bitLt` and `MatMul8bitFp`, bitsandbytes/autograd/_functions.py.
    """
    tape, autocast = r.tape, r.workload.precision.autocast
    weights = module.in_features * module.out_features
    width = x.width
    answered = width if r.on_cuda or autocast is None else autocast  # the CPU's product is one that autocast knows
    rows = x.elements // module.in_features
    results = rows * module.out_features
    size = x.elements * width
    with tape.scope() as scope:
        if r.on_cuda:
            half = 0 if width == 2 else x.elements * 2
            scratch = half + x.elements + rows * 4 + results * 4
        else:
            casts = (weights + x.elements) * answered if answered != width else 0
            scratch = weights * width + casts
        held = tape.allocate(scratch, Group.WEIGHT_COPIES)

        def backward(_: Storage) -> Gradients:
            written_out = tape.allocate(weights * width, Group.WEIGHT_COPIES)
            widened = tape.allocate(results * width if answered != width else 0)
            of_x = tape.allocate(size)
            tape.release(widened)
            tape.release(written_out)
            return (of_x,)

        product = tape.operation((x,), elements=results, width=answered, backward=backward)
        tape.keep_as_attribute(product, x)
        tape.release(held)
        return scope.returns(product)

"""One module at a time: linear layers in the format that their weights are held in, and norms."""

from loratory.engine.memory.autograd.tensors import Parameter, Value
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.persistent import dequantized_scale_bytes
from loratory.engine.models.shape import ModuleShape


def base_projection(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Send x through one linear layer without its adapter."""
    if r.workload.quantizes(module):
        return _int8(r, x, module) if r.workload.base == "int8" else _four_bit(r, x, module)
    precision = r.workload.precision
    width = precision.head if module.is_output_head else precision.weights
    weight = r.weight(module.in_features * module.out_features, width)
    bias = r.weight(module.out_features, width) if module.has_bias else None
    return autocast_linear(r, x, weight, module.out_features, bias)


@in_scope
def autocast_linear(
    r: StepContext, x: Value, weight: Parameter, out_features: int, bias: Parameter | None = None
) -> Value:
    """Multiply; under autocast both sides are cast first.

    Source: at::autocast `cached_cast`, aten/src/ATen/autocast_mode.cpp.
    """
    target = r.workload.precision.autocast
    if target is None:
        return r.tape.linear(x, weight, out_features, bias)
    x = r.tape.cast(x, target)
    return r.tape.linear(x, weight if weight.width == target else r.cast_weight(weight, target), out_features, bias)


@in_scope
def _four_bit(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Run a 4-bit layer: the weight is written out at compute precision, forward and backward, and released.

    The packed weight is an attribute of the autograd node, so nothing is saved.

    Source: `Linear4bit.forward` and `MatMul4Bit`, bitsandbytes/autograd/_functions.py.
    """
    tape, workload = r.tape, r.workload
    compute = workload.precision.compute
    elements = module.in_features * module.out_features
    nested = workload.double_quant and workload.base in ("nf4", "fp4")
    scales = dequantized_scale_bytes(elements) if nested else 0
    narrow = tape.cast(x, compute)
    tape.use_scratch(2 * scales)
    weight_copy = tape.allocate_scratch(elements * compute + scales)
    results = x.elements // module.in_features * module.out_features
    product = tape.operation((narrow,), results, compute, scratch=(elements * compute,))
    tape.release(weight_copy)
    return tape.cast(product, x.width)


def _int8(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Run an 8-bit layer. It keeps its input as an attribute of the autograd node, out of checkpointing's reach.

    On CUDA the input is quantized row by row and multiplied as integers; on the CPU the weight is written out.

    Source: `MatMul8bitLt` and `MatMul8bitFp`, bitsandbytes/autograd/_functions.py.
    """
    tape, autocast = r.tape, r.workload.precision.autocast
    weights = module.in_features * module.out_features
    width = x.width
    product_width = width if r.on_cuda or autocast is None else autocast  # the CPU's product is one that autocast knows
    rows = x.elements // module.in_features
    results = rows * module.out_features
    if r.on_cuda:
        half = 0 if width == 2 else x.elements * 2
        scratch = half + x.elements + rows * 4 + results * 4
    else:
        casts = (weights + x.elements) * product_width if product_width != width else 0
        scratch = weights * width + casts
    scratch_storage = tape.allocate(scratch)
    wide_gradient = results * width if product_width != width else 0
    product = tape.operation((x,), results, product_width, scratch=(weights * width, wide_gradient))
    tape.keep_as_attribute(product, x)
    tape.release(scratch_storage)
    return product


def normalize(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """Apply a norm over the last dimension of x."""
    if norm.class_name.startswith("LayerNorm") and not norm.class_name.endswith("RMSNorm"):
        return _layer_norm(r, x, norm)
    kernels = r.workload.layer_kernels
    is_fused = kernels == "liger" or (kernels == "torch" and _is_plain_rms_norm(norm))
    return _fused_rms_norm(r, x, norm) if is_fused and norm.out_features else _rms_norm(r, x, norm)


def _is_plain_rms_norm(norm: ModuleShape) -> bool:
    """Return whether PyTorch's kernel takes its place: one weight for each feature, to which nothing is added."""
    is_named = norm.class_name.endswith("RMSNorm") and not norm.class_name.startswith("Gemma")
    return is_named and norm.parameters == norm.out_features


@in_scope
def _rms_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """Root-mean-square norm as transformers writes it: at 32 bits, one operation after the other.

    Keeps x at 32 bits (x itself where it has 32 bits already) and one factor per row; with trained weights also the
    normalized x. Gemma multiplies at 32 bits by one more than the weight, which is kept, and narrows last.

    Source: `LlamaRMSNorm.forward`, transformers/models/llama/modeling_llama.py; `Gemma2RMSNorm.forward`,
    transformers/models/gemma2/modeling_gemma2.py, which all of the family have.
    """
    tape = r.tape
    width = norm.out_features or norm.parameters
    normalized = _over_root_mean_square(r, x, width)
    if norm.class_name.startswith("Gemma"):
        as_wide = _at_32_bits(r, r.weight(width, r.workload.precision.norms))
        factor = tape.assign(as_wide, tape.scale(as_wide))
        wide = tape.multiply(normalized, factor)
        tape.drop(normalized, factor)
        return tape.cast(wide, x.width)
    narrow = tape.cast(normalized, x.width)
    if not norm.parameters:
        return narrow
    return tape.multiply(narrow, r.weight(width, r.workload.precision.norms))


def _at_32_bits(r: StepContext, weight: Parameter) -> Value:
    """`weight.float()`: the weight itself where it has 32 bits already."""
    if weight.width < 4:
        return r.tape.operation((weight,), weight.elements, 4)
    itself = r.tape.value(0, 4)
    itself.elements, itself.producer = weight.elements, weight if weight.trainable else None
    return itself


@in_scope
def _over_root_mean_square(r: StepContext, x: Value, width: int) -> Value:
    """x at 32 bits over the root of its mean square."""
    tape = r.tape
    wide = tape.cast(x, 4)
    squares = tape.pointwise(wide, scratch=2)  # `grad * (2 * x.pow(1))` holds two tensors besides its result
    variance = tape.assign(squares, tape.operation((squares,), x.elements // width, 4))
    shifted = tape.scale(variance)
    inverse = tape.assign(shifted, tape.pointwise(shifted, saves_result=True, scratch=2))
    return tape.multiply(wide, inverse)


def _fused_rms_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """One kernel: keeps x itself and one factor per row."""
    # Source: `Fast_RMS_Layernorm`, unsloth/kernels/rms_layernorm.py; `LigerRMSNormFunction`, liger_kernel/ops/rms_norm.py.
    weight = r.weight(norm.out_features, r.workload.precision.norms)
    factors = r.tape.value(x.elements // norm.out_features, 4)
    result = r.tape.operation((x, weight), x.elements, x.width, saved=(x, weight, factors))
    return r.tape.assign(factors, result)


@in_scope
def _layer_norm(r: StepContext, x: Value, norm: ModuleShape) -> Value:
    """`torch.nn.LayerNorm`, one kernel: keeps x, and mean and inverse deviation per row.

    Under autocast on CUDA it computes and answers at 32 bits.

    Source: `native_layer_norm` in derivatives.yaml.
    """
    tape = r.tape
    rows = x.elements // norm.out_features
    weight = r.weight(norm.out_features, r.workload.precision.norms)
    if r.workload.precision.autocast and r.on_cuda:
        x = tape.cast(x, 4)
    # A processor keeps them as narrow as x where weights are as narrow; a GPU always at 32 bits.
    statistics = tape.value(rows * 2, 4 if r.on_cuda else max(x.width, weight.width))
    return tape.operation((x, weight), x.elements, x.width, saved=(x, weight, statistics, statistics))

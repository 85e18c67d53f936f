"""Methods that change a layer by structured matrices: products (LoHa, LoKr), blocks (OFT, MiSS), and vectors (VeRA, IA3)."""

import math

from loratory.engine.config.methods.ia3 import FEEDFORWARD_ENDINGS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory.autograd.tensors import Parameter, Value, needs_gradient
from loratory.engine.memory.layers.modules import autocast_linear, base_projection
from loratory.engine.memory.layers.step_context import StepContext
from loratory.engine.memory.methods import base
from loratory.engine.memory.persistent import TensorShape
from loratory.engine.models.shape import ModuleShape


class LoHaMemory(base.MemoryRule):
    """A, B of `W1 = A1 B1` and `W2 = A2 B2`."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return hada_w1_a, w1_b, w2_a and w2_b of `LoHaLayer.create_adapter_parameters`."""
        pair = ((module.out_features, adapter.r), (adapter.r, module.in_features))
        return (*pair, *pair)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(x) + x @ ((A1 B1) * (A2 B2) * scaling).T`.

        Source: `LoHaLayer.forward` in peft/tuners/loha/layer.py.
        """
        result = base_projection(r, x, module)
        return base.add_with_weight(r, result, x, module, _hadamard(r, module))


def _hadamard(r: StepContext, module: ModuleShape) -> Value:
    """Compute the weight as PEFT's own function, which keeps the four matrices and multiplies them out again backward."""
    # Source: `HadaWeight` in peft/tuners/loha/layer.py.
    tape, rank = r.tape, r.workload.adapter.r
    elements, low = module.in_features * module.out_features, r.workload.precision.autocast or 4
    sizes = [module.out_features * rank, rank * module.in_features] * 2
    parameters = [r.adapter_weight(size) for size in sizes]
    if low != 4:
        tape.drop(*(r.cast_weight(parameter, low) for parameter in parameters))
    tape.use(elements * low, elements * low, elements * low)
    # The scaled gradient; both products, and the gradient of one of them.
    return tape.operation(parameters, elements, low, scratch=(elements * low, *[elements * 4] * 3))


class LoKrMemory(base.MemoryRule):
    """W1 and W2, each whole or as a product of two matrices."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return w1 and w2 of `LoKrLayer.create_adapter_parameters`."""
        first, second = _factors(module, adapter)
        return (*first, *second)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(x) + x @ (kron(W1, W2) * scaling).T`.

        Source: `LoKrLayer.forward` and `make_kron` in peft/tuners/lokr/layer.py.
        """
        tape = r.tape
        result = base_projection(r, x, module)
        first, second = (_factor_weight(r, tensors) for tensors in _factors(module, r.workload.adapter))
        # A product with both factors broadcast; the gradient of each is computed at full size before it is summed.
        weight = tape.multiply(first, second, first.elements * second.elements)
        weight = tape.assign(weight, tape.scale(weight))
        return base.add_with_weight(r, result, x, module, weight)


def _factors(module: ModuleShape, adapter: AdapterConfig) -> tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]:
    """Return the shapes of both factors; one that is low-rank has two tensors."""
    # Source: `LoKrLayer.update_layer`.
    in_m, in_n = split_in_two(module.in_features, adapter.decompose_factor)
    out_l, out_k = split_in_two(module.out_features, adapter.decompose_factor)
    first = _factor(out_l, in_m, adapter.r) if adapter.decompose_both else ((out_l, in_m),)
    return first, _factor(out_k, in_n, adapter.r)


def _factor(rows: int, columns: int, rank: int) -> tuple[TensorShape, ...]:
    return ((rows, rank), (rank, columns)) if rank < max(rows, columns) / 2 else ((rows, columns),)


def split_in_two(dimension: int, factor: int) -> tuple[int, int]:
    """Split a dimension in two, the smaller one first: the nearest to its square root, or to `factor`.

    Source: `factorization` in peft/tuners/lokr/layer.py.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    most = dimension if factor == -1 else factor
    divisors = (divisor for divisor in range(1, math.isqrt(dimension) + 1) if not dimension % divisor)
    small = max(divisor for divisor in divisors if divisor <= max(1, most))
    return small, dimension // small


def _factor_weight(r: StepContext, tensors: tuple[TensorShape, ...]) -> Value:
    weights = [r.adapter_weight(math.prod(shape)) for shape in tensors]
    if len(weights) == 1:
        return base.as_view(r, weights[0])
    low = r.workload.precision.autocast
    first = base.as_view(r, weights[0]) if low is None else r.cast_weight(weights[0], low)
    return autocast_linear(r, first, weights[1], tensors[1][1])


class OftMemory(base.MemoryRule):
    """The upper triangle of every block."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the weight of `OFTRotationModule`."""
        size = block_size(module.in_features, adapter.oft_block_size)
        blocks = 1 if adapter.block_share else module.in_features // size
        return ((blocks, size * (size - 1) // 2),)

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Count the indices of the triangle: two numbers of 64 bits for each, in every layer."""
        sizes = (block_size(module.in_features, adapter.oft_block_size) for module in targets)
        return sum(2 * size * (size - 1) for size in sizes)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(rotate(x))`, rotated in the precision of the adapter.

        Source: `Linear.forward` and `OFTRotationModule.forward` in peft/tuners/oft/layer.py.
        """
        tape, adapter_width = r.tape, r.workload.precision.adapter
        inner = tape.cast(x, adapter_width)
        rotation_result = _rotate(r, inner, _rotation(r, module))
        in_order = tape.clone(rotation_result)  # blocks come before rows, and are put back
        wide = tape.cast(in_order, adapter_width)
        tape.drop(inner, rotation_result, in_order)
        return base_projection(r, tape.cast(wide, x.width), module)


def block_size(in_features: int, target: int) -> int:
    """Return the divisor of the inputs that is nearest to the wanted size: `OFTLayer.adjust_oft_parameters`."""
    if target >= in_features:
        return in_features
    higher = next(size for size in range(target, in_features + 1) if in_features % size == 0)
    lower = next(size for size in range(target, 0, -1) if in_features % size == 0)
    return lower if target - lower <= higher - target else higher


def _rotation(r: StepContext, module: ModuleShape) -> Value:
    """Compute the Cayley transform of every block, by its series: keeps the matrix and all but the last of its powers."""
    tape, adapter = r.tape, r.workload.adapter
    size = block_size(module.in_features, adapter.oft_block_size)
    blocks = 1 if adapter.block_share else module.in_features // size
    elements, triangle = blocks * size * size, blocks * size * (size - 1) // 2
    low = r.workload.precision.autocast
    products = adapter.num_cayley_neumann_terms - 2 if adapter.use_cayley_neumann else 2
    # Of each product both factors; autocast makes a copy of the matrix for each of them.
    width = low or 4
    factors = [tape.value(elements, width) for _ in range(products if low is None else 2 * products)]
    tape.use(elements * width, elements * width)
    rotation = tape.operation((r.adapter_weight(triangle),), elements, 4, scratch=[elements * 4] * 3, saved=factors)
    tape.drop(*factors)
    return rotation


def _rotate(r: StepContext, x: Value, rotation: Value) -> Value:
    """Multiply every block with its rotation; keeps both."""
    tape, low = r.tape, r.workload.precision.autocast
    if low is not None:
        x, rotation = tape.cast(x, low), tape.cast(rotation, low)
    saved = (x, rotation) if needs_gradient(x) else (x,)
    return tape.operation((x, rotation), x.elements, x.width, saved=saved)


class MissMemory(base.MemoryRule):
    """The `miss_block` of each layer."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the block by variant: `MissLayer.update_layer`."""
        if adapter.init_weights == "bat":
            return ((module.out_features // adapter.r, adapter.r, adapter.r),)
        if adapter.init_weights == "mini":
            return ((adapter.r, adapter.mini_r),)
        return ((adapter.r, module.out_features),)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """Source: `MissLinear.forward` in peft/tuners/miss/layer.py."""
        return _bat(r, x, module) if r.workload.adapter.init_weights == "bat" else _shards(r, x, module)


def _shards(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`base(x) + x.reshape(…, shards, r).sum(-2) @ block`; keeps the sum, which is r wide."""
    tape, workload = r.tape, r.workload
    rank, rows = workload.adapter.r, x.elements // module.in_features
    result = base.base_result(r, x, module)
    missing = -module.in_features % rank
    inner = tape.operation((x,), rows * (module.in_features + missing), x.width) if missing else tape.alias(x)
    inner = tape.assign(inner, tape.cast(inner, workload.precision.adapter))
    inner = r.drop_out(inner, workload.adapter.miss_dropout)
    # A sum whose gradient is expanded, and written out where a product asks for it.
    shard_sum = tape.assign(inner, tape.operation((inner,), rows * rank, inner.width))
    up = autocast_linear(r, shard_sum, r.adapter_weight(rank * module.out_features), module.out_features)
    tape.drop(shard_sum)
    return base.add_branch(r, result, up, result.width)


def _bat(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`x @ (W + W' block + block).T`, with W cut in blocks: keeps the blocks and the new weight."""
    tape, adapter = r.tape, r.workload.precision.adapter
    elements = module.in_features * module.out_features
    block = base.as_value(r, r.adapter_weight(module.out_features * r.workload.adapter.r))
    original = tape.value(elements, r.workload.precision.weights)
    cut = tape.value(elements, adapter)
    weight = tape.operation((block,), elements, adapter, scratch=(elements * adapter,), saved=(cut,))
    tape.use(elements * adapter, elements * adapter)
    tape.drop(original, cut, block)
    result = base.multiply_with_weight(r, tape.cast(x, adapter), weight, module.out_features)
    return tape.assign(result, tape.cast(result, x.width))


class VeraMemory(base.MemoryRule):
    """lambda_b and lambda_d; A and B are frozen, and as large as the largest layer."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the two vectors of `VeraLayer.update_layer`."""
        return ((module.out_features,), (adapter.r,))

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Count the shared matrices: `VeraModel._init_vera_A_vera_B`."""
        widest = max((module.in_features for module in targets), default=0)
        return adapter.r * (widest + max((module.out_features for module in targets), default=0))

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(x) + lambda_b * (lambda_d * dropout(x) A.T) B.T`; keeps both products.

        Source: `Linear.forward` in peft/tuners/vera/layer.py.
        """
        tape, workload = r.tape, r.workload
        rank = workload.adapter.r
        result = base.base_result(r, x, module)
        inner = tape.cast(x, workload.precision.adapter)
        inner = r.drop_out(inner, workload.adapter.vera_dropout)
        down = autocast_linear(r, inner, Parameter(rank * module.in_features, 4), rank)
        down = tape.assign(down, tape.multiply(down, r.adapter_weight(rank)))
        up = autocast_linear(r, down, Parameter(rank * module.out_features, 4), module.out_features)
        tape.drop(down)
        up = tape.assign(up, tape.multiply(up, r.adapter_weight(module.out_features)))
        return base.add_branch(r, result, up, result.width)


class Ia3Memory(base.MemoryRule):
    """A vector that rescales the input of feed-forward modules and the output of the other ones."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """One row where it scales the input, one column where it scales the output.

        Source: Liu et al. 2022, section 3.3 (arXiv:2205.05638); PEFT `IA3Layer.update_layer`.
        """
        return ((1, module.in_features),) if is_feedforward(module, adapter) else ((module.out_features, 1),)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """Multiply the output, or the input of feed-forward layers, with a learned vector; keeps the rescaled factor.

        Source: `Linear.forward` in peft/tuners/ia3/layer.py, `Linear4bit.forward` in peft/tuners/ia3/bnb.py.
        """
        tape, workload = r.tape, r.workload
        feedforward, quantized = is_feedforward(module, workload.adapter), workload.quantizes(module)
        factor = base.as_value(r, r.adapter_weight(module.in_features if feedforward else module.out_features))
        widens = quantized and not r.peft_sees_autocast and x.width != 4
        inner = tape.cast(x, 4) if widens else tape.alias(x)
        if feedforward:
            if not quantized:
                inner = tape.assign(inner, tape.cast(inner, workload.precision.adapter))
            scaled = tape.multiply(inner, factor)
            if not quantized:
                scaled = tape.assign(scaled, tape.cast(scaled, x.width))
            result = tape.assign(scaled, base_projection(r, scaled, module))
            return base.copied_in_4_bits(r, result, module)
        result = base_projection(r, inner, module)
        result_width = result.width  # which casting x has widened already
        result = tape.assign(result, tape.multiply(result, factor))
        result = base.copied_in_4_bits(r, result, module)
        return tape.assign(result, tape.cast(result, result_width)) if widens or not quantized else result


def is_feedforward(module: ModuleShape, adapter: AdapterConfig) -> bool:
    """Return whether IA3 rescales the module's input instead of its output."""
    return module.name.endswith(adapter.feedforward_modules or FEEDFORWARD_ENDINGS)

"""The LyCORIS family: LoHa's two pairs of matrices and LoKr's factors of a Kronecker product, for each layer, multiplied
out to the size of its weight at every pass.
"""

import math

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Gradients, Storage, Value
from engine.memory.layers.modules import autocast_linear, base_projection
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, add_with_weight, as_view
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class LoHaMemory(MemoryRule):
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
        return add_with_weight(r, result, x, module, _hadamard(r, module))


def _hadamard(r: StepContext, module: ModuleShape) -> Value:
    """A function of PEFT's own that keeps the four matrices alone, and multiplies them out again for their gradients."""
    # Source: `HadaWeight` in peft/tuners/loha/layer.py.
    tape, rank = r.tape, r.workload.adapter.r
    elements, low = module.in_features * module.out_features, r.workload.precision.autocast or 4
    sizes = [module.out_features * rank, rank * module.in_features] * 2
    parameters = [r.adapter_weight(size) for size in sizes]
    if low != 4:
        tape.drop(*(r.cast_weight(parameter, low) for parameter in parameters))
    tape.use(elements * low, elements * low, elements * low)

    def backward(_: Storage) -> Gradients:
        scaled = tape.allocate(elements * low)
        gradients: list[Storage] = []
        for number, pair in enumerate((sizes[:2], sizes[2:])):
            tape.use(*[elements * 4] * (2 + number))  # the second product is made while the first is still held
            gradients += [tape.allocate(size * 4) for size in pair]
        tape.release(scaled)
        return gradients

    return tape.operation(parameters, elements, low, backward=backward)


class LoKrMemory(MemoryRule):
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
        first, second = (_multiplied(r, tensors) for tensors in _factors(module, r.workload.adapter))
        # A product with both factors broadcast; the gradient of each is computed at full size before it is summed.
        weight = tape.multiply(first, second, first.elements * second.elements)
        weight = tape.assign(weight, tape.scale(weight))
        return add_with_weight(r, result, x, module, weight)


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


def _multiplied(r: StepContext, tensors: tuple[TensorShape, ...]) -> Value:
    weights = [r.adapter_weight(math.prod(shape)) for shape in tensors]
    if len(weights) == 1:
        return as_view(r, weights[0])
    low = r.workload.precision.autocast
    first = as_view(r, weights[0]) if low is None else r.cast_weight(weights[0], low)
    return autocast_linear(r, first, weights[1], tensors[1][1])

"""LoHa: two pairs of matrices for each layer, multiplied out to the size of its weight at every pass."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Gradients, Storage, Value
from engine.memory.layers.modules import base_projection
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, add_with_weight
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
    """A function of PEFT's own that keeps the four matrices alone, and multiplies them out again for their gradients.

    Source: `HadaWeight` in peft/tuners/loha/layer.py.
    """
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

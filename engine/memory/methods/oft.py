"""OFT: a skew-symmetric matrix for each block of a layer's inputs, and the rotation that is made of it."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Gradients, Storage, Value, needs_gradient
from engine.memory.layers.modules import base_projection
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class OftMemory(MemoryRule):
    """The upper triangle of every block."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the weight of `OFTRotationModule`."""
        size = block_size(module.in_features, adapter.oft_block_size)
        blocks = 1 if adapter.block_share else module.in_features // size
        return ((blocks, size * (size - 1) // 2),)

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Count the places of the triangle: two numbers of 64 bits for each, in every layer."""
        sizes = (block_size(module.in_features, adapter.oft_block_size) for module in targets)
        return sum(2 * size * (size - 1) for size in sizes)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(rotate(x))`, rotated in the precision of the adapter.

        Source: `Linear.forward` and `OFTRotationModule.forward` in peft/tuners/oft/layer.py.
        """
        tape, adapter_width = r.tape, r.workload.precision.adapter
        inner = tape.cast(x, adapter_width)
        turned = _rotate(r, inner, _rotation(r, module))
        in_order = tape.clone(turned)  # blocks come before rows, and are put back
        wide = tape.cast(in_order, adapter_width)
        tape.drop(inner, turned, in_order)
        return base_projection(r, tape.cast(wide, x.width), module)


def block_size(in_features: int, wanted: int) -> int:
    """Return the divisor of the inputs that is nearest to the wanted size: `OFTLayer.adjust_oft_parameters`."""
    if wanted >= in_features:
        return in_features
    higher = next(size for size in range(wanted, in_features + 1) if in_features % size == 0)
    lower = next(size for size in range(wanted, 0, -1) if in_features % size == 0)
    return lower if wanted - lower <= higher - wanted else higher


def _rotation(r: StepContext, module: ModuleShape) -> Value:
    """The Cayley transform of every block, by its series: keeps the matrix and all but the last of its powers."""
    tape, adapter = r.tape, r.workload.adapter
    size = block_size(module.in_features, adapter.oft_block_size)
    blocks = 1 if adapter.block_share else module.in_features // size
    elements, triangle = blocks * size * size, blocks * size * (size - 1) // 2
    low = r.workload.precision.autocast
    products = adapter.num_cayley_neumann_terms - 2 if adapter.use_cayley_neumann else 2
    # Of each product both factors; autocast makes a copy of the matrix for each of them.
    width = low or 4
    kept = [tape.value(elements, width) for _ in range(products if low is None else 2 * products)]
    tape.use(elements * width, elements * width)
    parameter = r.adapter_weight(triangle)

    def backward(_: Storage) -> Gradients:
        tape.use(elements * 4, elements * 4, elements * 4)
        return (tape.allocate(triangle * 4),)

    rotation = tape.operation((parameter,), elements, 4, backward=backward, saved=kept)
    tape.drop(*kept)
    return rotation


def _rotate(r: StepContext, x: Value, rotation: Value) -> Value:
    """A product of every block with its rotation; keeps both."""
    tape, low = r.tape, r.workload.precision.autocast
    if low is not None:
        x, rotation = tape.cast(x, low), tape.cast(rotation, low)
    saved = (x, rotation) if needs_gradient(x) else (x,)
    return tape.operation((x, rotation), x.elements, x.width, saved=saved)

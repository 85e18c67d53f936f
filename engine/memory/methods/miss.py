"""MiSS: one matrix for each layer, multiplied with the sum of the input's shards."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.operations import add, assign, cast, clone, dropout, linear
from engine.memory.autograd.tensors import Gradients, Storage, Value
from engine.memory.layers.projections import autocast_linear, base_projection, is_quantized
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, as_value
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class MissMemory(MemoryRule):
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
    with tape.scope() as scope:
        result = base_projection(r, x, module)
        answered = result.width
        if is_quantized(r, module) and workload.base != "int8":
            result = assign(tape, result, clone(tape, result))
        missing = -module.in_features % rank
        inner = _padded(r, x, rows * (module.in_features + missing)) if missing else tape.alias(x)
        inner = assign(tape, inner, cast(tape, inner, workload.precision.adapter))
        if workload.adapter.miss_dropout > 0:
            inner = assign(tape, inner, dropout(tape, inner, on_cuda=r.on_cuda))
        summed = assign(tape, inner, _sum(r, inner, rows * rank))
        up = autocast_linear(r, summed, r.adapter_weight(rank * module.out_features), module.out_features)
        tape.drop(summed)
        result = assign(tape, result, add(tape, result, up))
        tape.drop(up)
        return scope.returns(assign(tape, result, cast(tape, result, answered)))


def _padded(r: StepContext, x: Value, elements: int) -> Value:
    size = x.elements * x.width
    return r.tape.operation((x,), elements=elements, width=x.width, backward=lambda _: (r.tape.allocate(size),))


def _sum(r: StepContext, x: Value, elements: int) -> Value:
    """A sum whose gradient is expanded, and written out where a product asks for it."""
    size = x.elements * x.width
    return r.tape.operation((x,), elements=elements, width=x.width, backward=lambda _: (r.tape.allocate(size),))


def _bat(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`x @ (W + W' block + block).T`, with W cut in blocks: keeps the blocks and the new weight."""
    tape, adapter = r.tape, r.workload.precision.adapter
    elements = module.in_features * module.out_features
    answered = x.width
    with tape.scope() as scope:
        block = as_value(r, r.adapter_weight(module.out_features * r.workload.adapter.r))
        original = tape.value(elements, r.workload.precision.weights)
        cut = tape.value(elements, adapter)

        def backward(_: Storage) -> Gradients:
            tape.use(elements * adapter)
            return (tape.allocate(block.elements * adapter),)

        weight = tape.operation((block,), elements=elements, width=adapter, backward=backward, saved=(cut,))
        tape.use(elements * adapter, elements * adapter)
        tape.drop(original, cut, block)
        target = r.workload.precision.autocast
        inner = cast(tape, x, adapter)
        if target is not None:
            inner = assign(tape, inner, cast(tape, inner, target))
            weight = assign(tape, weight, cast(tape, weight, target))
        result = linear(tape, inner, weight, module.out_features)
        return scope.returns(assign(tape, result, cast(tape, result, answered)))

"""MiSS: one matrix for each layer, multiplied with the sum of the input's shards."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Gradients, Storage, Value
from engine.memory.layers.modules import autocast_linear
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, add_branch, as_value, base_result, multiply_with_weight
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
    result = base_result(r, x, module)
    missing = -module.in_features % rank
    inner = tape.operation((x,), rows * (module.in_features + missing), x.width) if missing else tape.alias(x)
    inner = tape.assign(inner, tape.cast(inner, workload.precision.adapter))
    if workload.adapter.miss_dropout > 0:
        inner = tape.assign(inner, tape.dropout(inner, on_cuda=r.on_cuda))
    # A sum whose gradient is expanded, and written out where a product asks for it.
    summed = tape.assign(inner, tape.operation((inner,), rows * rank, inner.width))
    up = autocast_linear(r, summed, r.adapter_weight(rank * module.out_features), module.out_features)
    tape.drop(summed)
    return add_branch(r, result, up, result.width)


def _bat(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """`x @ (W + W' block + block).T`, with W cut in blocks: keeps the blocks and the new weight."""
    tape, adapter = r.tape, r.workload.precision.adapter
    elements = module.in_features * module.out_features
    block = as_value(r, r.adapter_weight(module.out_features * r.workload.adapter.r))
    original = tape.value(elements, r.workload.precision.weights)
    cut = tape.value(elements, adapter)

    def backward(_: Storage) -> Gradients:
        tape.use(elements * adapter)
        return (tape.allocate(block.elements * adapter),)

    weight = tape.operation((block,), elements, adapter, backward=backward, saved=(cut,))
    tape.use(elements * adapter, elements * adapter)
    tape.drop(original, cut, block)
    result = multiply_with_weight(r, tape.cast(x, adapter), weight, module.out_features)
    return tape.assign(result, tape.cast(result, x.width))

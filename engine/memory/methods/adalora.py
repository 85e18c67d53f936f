"""AdaLoRA: two matrices and a column of singular values for each layer, and the importance of every weight."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Gradients, Storage, Value, needs_gradient, share
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, as_view, base_result
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class AdaLoraMemory(MemoryRule):
    """Ranks are masked, not removed: every step has the first rank."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """A, E and B of `AdaLoraLayer.update_layer`."""
        rank = adapter.init_r
        return ((rank, module.in_features), (rank, 1), (module.out_features, rank))

    def frozen_parameters(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:  # noqa: ARG002
        """Count `ranknum`, one number for each layer."""
        return len(targets)

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Count sensitivity, its mean and its uncertainty, which `RankAllocator` keeps of every weight."""
        rank = adapter.init_r
        return 3 * sum(rank * (module.in_features + module.out_features + 1) for module in targets)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """`base(x) + dropout(x) @ (A * E).T @ B.T * scaling / ranknum`.

        Source: `SVDLinear.forward` in peft/tuners/adalora/layer.py, `SVDLinear4bit.forward` in peft/tuners/adalora/bnb.py.
        """
        tape, workload = r.tape, r.workload
        rank, quantized = workload.adapter.init_r, workload.quantizes(module)
        result = base_result(r, x, module)
        casts = not (quantized and r.peft_sees_autocast)
        inner = tape.cast(x, workload.precision.adapter) if casts else tape.alias(x)
        if workload.adapter.lora_dropout > 0:
            inner = tape.assign(inner, tape.dropout(inner, on_cuda=r.on_cuda))
        singular = r.adapter_weight(rank)
        rows = tape.multiply(as_view(r, r.adapter_weight(rank * module.in_features)), singular)
        target = workload.precision.autocast
        if target is not None:
            inner = tape.assign(inner, tape.cast(inner, target))
            rows = tape.assign(rows, tape.cast(rows, target))
        down = tape.linear(inner, rows, rank)
        left = as_view(r, r.adapter_weight(rank * module.out_features))
        if target is not None:
            left = tape.cast(left, target)
        up = tape.linear(down, left, module.out_features)
        if quantized:
            up = tape.assign(up, tape.cast(up, result.width))
        scaled = tape.assign(up, tape.scale(up))
        scaled = tape.assign(scaled, tape.scale(scaled, width=4))  # by a number that is held at 32 bits
        return tape.add(result, scaled) if quantized and workload.base == "int8" else _add_in_place(r, result, scaled)


def _add_in_place(r: StepContext, result: Value, update: Value) -> Value:
    """`result += update`: the result keeps its precision, and the update's gradient gets the update's."""
    size, casts, needs = update.size, update.width != result.width, needs_gradient(result)

    def backward(gradient: Storage) -> Gradients:
        return (share(gradient) if needs else None, r.tape.allocate(size) if casts else share(gradient))

    return r.tape.operation_in_place(result, (result, update), backward)

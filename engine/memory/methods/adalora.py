"""AdaLoRA: two matrices and a column of singular values for each layer, and the importance of every weight."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.operations import add, assign, cast, clone, dropout, linear, multiply, scale, share
from engine.memory.autograd.tensors import Value, needs_gradient
from engine.memory.layers.projections import base_projection, is_quantized
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, as_view
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class AdaLoraMemory(MemoryRule):
    """Ranks are masked, not removed: every step has the first rank."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """A, E and B of `AdaLoraLayer.update_layer`."""
        rank = adapter.init_r
        return ((rank, module.in_features), (rank, 1), (module.out_features, rank))

    def frozen_parameters(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Count `ranknum`, one number for each layer."""
        del adapter
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
        adapter, rank = workload.adapter, workload.adapter.init_r
        quantized = is_quantized(r, module)
        with tape.scope() as scope:
            result = base_projection(r, x, module)
            if quantized and workload.base != "int8":
                result = assign(tape, result, clone(tape, result))
            casts = not (quantized and r.peft_sees_autocast)
            inner = cast(tape, x, workload.precision.adapter) if casts else tape.alias(x)
            if adapter.lora_dropout > 0:
                inner = assign(tape, inner, dropout(tape, inner, on_cuda=r.on_cuda))
            singular = r.adapter_weight(rank)
            rows = multiply(tape, as_view(r, r.adapter_weight(rank * module.in_features)), singular)
            target = workload.precision.autocast
            if target is not None:
                inner = assign(tape, inner, cast(tape, inner, target))
                rows = assign(tape, rows, cast(tape, rows, target))
            down = linear(tape, inner, rows, rank)
            left = as_view(r, r.adapter_weight(rank * module.out_features))
            if target is not None:
                left = cast(tape, left, target)
            up = linear(tape, down, left, module.out_features)
            if quantized:
                up = assign(tape, up, cast(tape, up, result.width))
            scaled = assign(tape, up, scale(tape, up))
            scaled = assign(tape, scaled, scale(tape, scaled, width=4))  # by a number that is held at 32 bits
            if quantized and workload.base == "int8":
                return scope.returns(add(tape, result, scaled))
            return scope.returns(_add_in_place(r, result, scaled))


def _add_in_place(r: StepContext, result: Value, update: Value) -> Value:
    """`result += update`: the result keeps its precision, and the update's gradient gets the update's."""
    size = update.elements * update.width
    casts, needs = update.width != result.width, needs_gradient(result)
    return r.tape.operation_in_place(
        result,
        (result, update),
        backward=lambda gradient: (
            share(gradient) if needs else None,
            r.tape.allocate(size) if casts else share(gradient),
        ),
        saved=(),
    )

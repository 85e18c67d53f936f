"""VeRA: two vectors for each layer, and two random matrices for all of them."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.operations import add, assign, cast, clone, dropout, multiply
from engine.memory.autograd.tensors import Parameter, Value
from engine.memory.layers.projections import autocast_linear, base_projection, is_quantized
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class VeraMemory(MemoryRule):
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
        with tape.scope() as scope:
            result = base_projection(r, x, module)
            answered = result.width
            if is_quantized(r, module) and workload.base != "int8":
                result = assign(tape, result, clone(tape, result))
            inner = cast(tape, x, workload.precision.adapter)
            if workload.adapter.vera_dropout > 0:
                inner = assign(tape, inner, dropout(tape, inner, on_cuda=r.on_cuda))
            down = autocast_linear(r, inner, Parameter(rank * module.in_features, 4), rank)
            down = assign(tape, down, multiply(tape, down, r.adapter_weight(rank)))
            up = autocast_linear(r, down, Parameter(rank * module.out_features, 4), module.out_features)
            tape.drop(down)
            up = assign(tape, up, multiply(tape, up, r.adapter_weight(module.out_features)))
            result = assign(tape, result, add(tape, result, up))
            tape.drop(up)
            return scope.returns(assign(tape, result, cast(tape, result, answered)))

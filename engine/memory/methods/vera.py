"""VeRA: two vectors for each layer, and two random matrices for all of them."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Parameter, Value
from engine.memory.layers.modules import autocast_linear
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, add_branch, base_result
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
        result = base_result(r, x, module)
        inner = tape.cast(x, workload.precision.adapter)
        if workload.adapter.vera_dropout > 0:
            inner = tape.assign(inner, tape.dropout(inner, on_cuda=r.on_cuda))
        down = autocast_linear(r, inner, Parameter(rank * module.in_features, 4), rank)
        down = tape.assign(down, tape.multiply(down, r.adapter_weight(rank)))
        up = autocast_linear(r, down, Parameter(rank * module.out_features, 4), module.out_features)
        tape.drop(down)
        up = tape.assign(up, tape.multiply(up, r.adapter_weight(module.out_features)))
        return add_branch(r, result, up, result.width)

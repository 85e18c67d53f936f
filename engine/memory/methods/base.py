"""What a PEFT method adds to a training step."""

from collections.abc import Sequence

from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory.autograd.tensors import Parameter, Value
from loratory.engine.memory.layers.modules import base_projection
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.persistent import TensorShape
from loratory.engine.models.shape import ModelShape, ModuleShape


class MemoryRule:
    """One method's tensors, and its operations in a layer. A subclass overrides what the method has."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:  # noqa: ARG002
        """Return the shapes of what is trained in one adapted layer."""
        return ()

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:  # noqa: ARG002
        """Return the shapes of what is trained outside of layers, for virtual tokens."""
        return ()

    def virtual_inputs(self, r: StepContext) -> Value:
        """Return the embeddings of the virtual tokens that come before each row: the rows of one table."""
        return as_value(r, r.adapter_weight(r.workload.virtual_inputs * r.structure.shape.hidden_size))

    def frozen_parameters(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:  # noqa: ARG002
        """Return the parameters that the adapter adds and PEFT counts, which are not trained."""
        return 0

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:  # noqa: ARG002
        """Return the float32 numbers that stay in memory with the adapter and are not parameters."""
        return 0

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """Send x through one adapted layer, in a scope of the caller's."""
        return base_projection(r, x, module)

    def project_together(self, r: StepContext, x: Value, modules: Sequence[ModuleShape]) -> Sequence[Value] | None:  # noqa: ARG002
        """Send x through adapted layers that are computed as one, in a scope of the caller's; None where they are not."""
        return None


def as_value(r: StepContext, parameter: Parameter) -> Value:
    """Return a weight as an operand of pointwise operations, which make the first tensor on the tape."""
    return r.tape.operation((parameter,), parameter.elements, parameter.width)


def as_view(r: StepContext, parameter: Parameter) -> Value:
    """Return a view of a weight, such as its transpose, which takes no memory of its own."""
    value = r.small(parameter.elements, parameter.width)
    value.producer = parameter
    return value


def base_result(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Send x through the layer without its adapter; PEFT copies what a 4-bit layer answers.

    Source: `Linear4bit.forward` in peft/tuners/lora/bnb.py, as in the bnb.py of other methods.
    """
    return copied_in_4_bits(r, base_projection(r, x, module), module)


def copied_in_4_bits(r: StepContext, result: Value, module: ModuleShape) -> Value:
    """`result.clone()`, on 4-bit layers alone."""
    if r.workload.quantizes(module) and r.workload.base in ("nf4", "fp4"):
        return r.tape.assign(result, r.tape.clone(result))
    return result


def add_branch(r: StepContext, result: Value, update: Value, width: int) -> Value:
    """Compute `(result + update).to(dtype)`, after which no variable holds either."""
    both = r.tape.add(result, update)
    r.tape.drop(result, update)
    return r.tape.assign(both, r.tape.cast(both, width))


def multiply_with_weight(r: StepContext, x: Value, weight: Value, out_features: int) -> Value:
    """`x @ weight.T` with a computed weight, as autocast computes it; no variable holds either afterwards."""
    tape, target = r.tape, r.workload.precision.autocast
    if target is not None:
        x = tape.assign(x, tape.cast(x, target))
        weight = tape.assign(weight, tape.cast(weight, target))
    result = tape.linear(x, weight, out_features)
    tape.drop(x, weight)
    return result


@in_scope
def add_with_weight(r: StepContext, result: Value, x: Value, module: ModuleShape, written_out: Value) -> Value:
    """Compute `(result + x @ weight.T).to(x.dtype)`, with x in the precision of the weight, which is released after it."""
    inner = r.tape.cast(x, written_out.width)
    update = multiply_with_weight(r, inner, r.tape.alias(written_out), module.out_features)
    r.tape.drop(written_out)
    return add_branch(r, result, update, x.width)

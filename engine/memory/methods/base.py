"""What a PEFT method adds to a training step."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Parameter, Value
from engine.memory.layers.projections import base_projection
from engine.memory.layers.step_context import StepContext
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModelShape, ModuleShape


class MemoryRule:
    """One method's tensors, and its operations in a layer. A subclass overrides what the method has."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the shapes of what is trained in one adapted layer."""
        del module, adapter
        return ()

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the shapes of what is trained outside of layers, for virtual tokens."""
        del shape, adapter
        return ()

    def virtual_inputs(self, r: StepContext) -> Value:
        """Return the embeddings of the virtual tokens that come before each row: the rows of one table."""
        return as_value(r, r.adapter_weight(r.workload.virtual_inputs * r.structure.shape.hidden_size))

    def trained_biases(
        self, shape: ModelShape, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]
    ) -> tuple[TensorShape, ...]:
        """Return the base model's own biases that are trained; they add no parameter."""
        del shape, adapter, targets
        return ()

    def frozen_parameters(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Return the parameters that the adapter adds and PEFT counts, which are not trained."""
        del adapter, targets
        return 0

    def buffer_elements(self, adapter: AdapterConfig, targets: tuple[ModuleShape, ...]) -> int:
        """Return the float32 numbers that stay in memory with the adapter and are not parameters."""
        del adapter, targets
        return 0

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """Send x through one adapted layer."""
        return base_projection(r, x, module)


def as_value(r: StepContext, parameter: Parameter) -> Value:
    """Return a weight as an operand of pointwise operations, which make the first tensor on the tape."""
    tape, size = r.tape, parameter.elements * parameter.width
    return tape.operation(
        (parameter,),
        elements=parameter.elements,
        width=parameter.width,
        backward=lambda _: (tape.allocate(size),),
    )


def as_view(r: StepContext, parameter: Parameter) -> Value:
    """Return a view of a weight, such as its transpose, which takes no memory of its own."""
    value = r.small(parameter.elements, parameter.width)
    value.producer = parameter
    return value

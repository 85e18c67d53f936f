"""IA3: one learned vector for each layer."""

from engine.config.run import AdapterConfig
from engine.memory.autograd.operations import assign, cast, clone, multiply
from engine.memory.autograd.tensors import Value
from engine.memory.layers.projections import base_projection, is_quantized
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, as_value
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape

# Which modules rescale their input when the person leaves the choice to the model's family.
# Source: peft/utils/constants.py, TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.
_FEEDFORWARD_ENDINGS = (
    "down_proj",
    "mlp.c_proj",
    "mlp.dense_4h_to_h",
    "dense_4h_to_h",
    "fc2",
    "fc_out",
    "w2",
    "mlp.experts.down_proj",
)


class Ia3Memory(MemoryRule):
    """A vector that rescales the input of feed-forward modules and the output of the other ones."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """One row where it scales the input, one column where it scales the output.

        Source: Liu et al. 2022, section 3.3 (arXiv:2205.05638); PEFT `IA3Layer.update_layer`.
        """
        return ((1, module.in_features),) if is_feedforward(module, adapter) else ((module.out_features, 1),)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """See `_with_ia3`."""
        return _with_ia3(r, x, module)


def is_feedforward(module: ModuleShape, adapter: AdapterConfig) -> bool:
    """Return whether IA3 rescales the module's input instead of its output."""
    return module.name.endswith(adapter.feedforward_modules or _FEEDFORWARD_ENDINGS)


def _with_ia3(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """A learned vector times the output, or times the input of feed-forward layers; keeps the factor that it rescales.

    Source: `Linear.forward` in peft/tuners/ia3/layer.py, `Linear4bit.forward` in peft/tuners/ia3/bnb.py.
    """
    tape, workload = r.tape, r.workload
    feedforward = is_feedforward(module, workload.adapter)
    quantized = is_quantized(r, module)
    vector = r.adapter_weight(module.in_features if feedforward else module.out_features)
    with tape.scope() as scope:
        factor = as_value(r, vector)
        widens = quantized and not r.peft_sees_autocast and x.width != 4
        inner = cast(tape, x, 4) if widens else tape.alias(x)
        if feedforward:
            if not quantized:
                inner = assign(tape, inner, cast(tape, inner, workload.precision.adapter))
            scaled = multiply(tape, inner, factor)
            if not quantized:
                scaled = assign(tape, scaled, cast(tape, scaled, x.width))
            result = base_projection(r, scaled, module)
            tape.drop(scaled)
        else:
            result = base_projection(r, inner, module)
            answered = result.width  # which casting x has widened already
            result = assign(tape, result, multiply(tape, result, factor))
            if not quantized:
                result = assign(tape, result, cast(tape, result, answered))
        if quantized and workload.base in ("nf4", "fp4"):
            result = assign(tape, result, clone(tape, result))
        if widens and not feedforward:
            result = assign(tape, result, cast(tape, result, answered))
        return scope.returns(result)

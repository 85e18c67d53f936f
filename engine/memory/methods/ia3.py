"""IA3: one learned vector for each layer."""

from engine.config.methods.ia3 import FEEDFORWARD_ENDINGS
from engine.config.run import AdapterConfig
from engine.memory.autograd.tensors import Value
from engine.memory.layers.modules import base_projection
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.base import MemoryRule, as_value, copied_in_4_bits
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModuleShape


class Ia3Memory(MemoryRule):
    """A vector that rescales the input of feed-forward modules and the output of the other ones."""

    def layer_tensors(self, module: ModuleShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """One row where it scales the input, one column where it scales the output.

        Source: Liu et al. 2022, section 3.3 (arXiv:2205.05638); PEFT `IA3Layer.update_layer`.
        """
        return ((1, module.in_features),) if is_feedforward(module, adapter) else ((module.out_features, 1),)

    def project(self, r: StepContext, x: Value, module: ModuleShape) -> Value:
        """A learned vector times the output, or times the input of feed-forward layers; keeps the factor that it rescales.

        Source: `Linear.forward` in peft/tuners/ia3/layer.py, `Linear4bit.forward` in peft/tuners/ia3/bnb.py.
        """
        tape, workload = r.tape, r.workload
        feedforward, quantized = is_feedforward(module, workload.adapter), workload.quantizes(module)
        factor = as_value(r, r.adapter_weight(module.in_features if feedforward else module.out_features))
        widens = quantized and not r.peft_sees_autocast and x.width != 4
        inner = tape.cast(x, 4) if widens else tape.alias(x)
        if feedforward:
            if not quantized:
                inner = tape.assign(inner, tape.cast(inner, workload.precision.adapter))
            scaled = tape.multiply(inner, factor)
            if not quantized:
                scaled = tape.assign(scaled, tape.cast(scaled, x.width))
            result = tape.assign(scaled, base_projection(r, scaled, module))
            return copied_in_4_bits(r, result, module)
        result = base_projection(r, inner, module)
        answered = result.width  # which casting x has widened already
        result = tape.assign(result, tape.multiply(result, factor))
        result = copied_in_4_bits(r, result, module)
        return tape.assign(result, tape.cast(result, answered)) if widens or not quantized else result


def is_feedforward(module: ModuleShape, adapter: AdapterConfig) -> bool:
    """Return whether IA3 rescales the module's input instead of its output."""
    return module.name.endswith(adapter.feedforward_modules or FEEDFORWARD_ENDINGS)

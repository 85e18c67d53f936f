"""P-tuning: one embedding for each virtual token, and the encoder that all go through."""

from engine.config.adapter import AdapterConfig
from engine.memory.methods.base import MemoryRule
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModelShape


class PTuningMemory(MemoryRule):
    """What the encoder keeps for a few virtual tokens is small next to its weights, and is not counted."""

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the weights of `PromptEncoder`."""
        width = shape.hidden_size
        inner = adapter.encoder_hidden_size or width
        embedding = (adapter.num_virtual_tokens, width)
        if adapter.encoder_reparameterization_type == "MLP":
            return (embedding, (inner, width), (inner,), (inner, inner), (inner,), (width, inner), (width,))
        both = 2 * inner  # directions
        lstm: list[TensorShape] = []
        for layer in range(adapter.encoder_num_layers):
            read = both if layer else width
            lstm += 2 * [(4 * inner, read), (4 * inner, inner), (4 * inner,), (4 * inner,)]
        return (embedding, *lstm, (both, both), (both,), (width, both), (width,))

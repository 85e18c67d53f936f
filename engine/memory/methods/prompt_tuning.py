"""Prompt tuning: one learned embedding for each virtual token."""

from engine.config.run import AdapterConfig
from engine.memory.methods.base import MemoryRule
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModelShape


class PromptTuningMemory(MemoryRule):
    """What the step does with them is in `engine.memory.layers.decoder`."""

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the weight of `PromptEmbedding`."""
        return ((adapter.num_virtual_tokens, shape.hidden_size),)

"""Prefix tuning: learned keys and values of every layer."""

from engine.config.run import AdapterConfig
from engine.memory.methods.base import MemoryRule
from engine.memory.optimizers import TensorShape
from engine.models.shape import ModelShape


class PrefixTuningMemory(MemoryRule):
    """One row for each virtual token. What the step does with them is in `StepContext.put_prefixes`."""

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Two vectors per layer and key-value head.

        Source: Li and Liang 2021 (arXiv:2101.00190) without the reparametrization; PEFT `PrefixEncoder`, whose
        `token_dim` is head_dim × num_key_value_heads where the model has grouped-query heads.
        """
        width = shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim
        return ((adapter.num_virtual_tokens, width),)

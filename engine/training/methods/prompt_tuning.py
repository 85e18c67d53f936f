"""Prompt tuning in training: a prompt that starts as a text needs the model's tokenizer."""

from typing import Any

from engine.config.run import AdapterConfig
from engine.models.source import ModelSource
from engine.training.methods.base import MethodTrainer


class PromptTuningTrainer(MethodTrainer):
    """PEFT's adapter with a tokenizer."""

    def peft_config(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> Any:
        """Build PEFT's configuration with the place of the tokenizer, which PEFT reads while it builds the adapter."""
        del model
        arguments = dict(adapter.traits.peft_arguments(adapter))
        if "prompt_tuning_init_text" in arguments:
            arguments["tokenizer_name_or_path"] = source.location
        return self.configuration(adapter, arguments)

    def publish(self, config: Any, source: ModelSource) -> None:
        """Name the tokenizer as the base model is named."""
        super().publish(config, source)
        if config.tokenizer_name_or_path is not None:
            config.tokenizer_name_or_path = source.hub_id or source.location

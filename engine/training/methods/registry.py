"""The training of each PEFT method. A method that is not here trains as PEFT builds it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import peft
from transformers import AutoTokenizer

from engine.config.methods.registry import method_of_peft_type
from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.config.run import AdapterConfig
from engine.models.source import ModelSource
from engine.training.methods.adalora import AdaLoraTrainer
from engine.training.methods.base import MethodTrainer
from engine.training.ops.lora_linear import fuse_lora, lora_linears
from engine.training.ops.loss import causal_lm_of
from engine.training.targets import choose_ia3_targets

_ADAPTER = "default"


class LoraTrainer(MethodTrainer):
    """LoRA, whose plain layers run as `engine.training.ops.lora_linear` has them."""

    def prepare(self, model: Any) -> int:
        # Two matrices each, which need no autocast.
        return 2 * fuse_lora(model) if is_wanted("fused_lora") else 0

    def observing(self, model: Any) -> AbstractContextManager[None]:
        linears = lora_linears(model)
        return nullcontext() if linears is None else linears.observing()

    def optimizations(self, model: Any) -> dict[str, str]:
        linears = lora_linears(model)
        return {"fused_lora": LEFT_OUT} if linears is None else linears.optimizations

    def step(self, model: Any) -> AbstractContextManager[None]:
        linears = lora_linears(model)
        # Where activations are recomputed, memory is short: copies then last as long as a layer's call.
        recomputes = getattr(causal_lm_of(model), "is_activation_checkpointing", False)
        return nullcontext() if linears is None or recomputes else linears.step()


class Ia3Trainer(MethodTrainer):
    """IA3 with feed-forward modules by their names."""

    def model_arguments(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> dict[str, Any]:
        return super().model_arguments(model, adapter, source) | choose_ia3_targets(model, adapter)


class PrefixTuningTrainer(MethodTrainer):
    """Prefix tuning, from the keys and values of a text: from random ones, hundreds of steps only repair the damage."""

    def initialize(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> None:
        text, tokens = adapter.traits.initial_text(adapter), adapter.num_virtual_tokens
        if text is not None:
            peft.initialize_kv_prefix_from_text(
                model,
                AutoTokenizer.from_pretrained(source.location),
                text=" ".join([text] * tokens),
                use_chat_template=False,
                max_length=tokens,
            )


class PromptTuningTrainer(MethodTrainer):
    """Prompt tuning: a prompt that starts as a text needs the model's tokenizer."""

    def model_arguments(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> dict[str, Any]:  # noqa: ARG002
        starts_as_text = "prompt_tuning_init_text" in adapter.traits.peft_arguments(adapter)
        return {"tokenizer_name_or_path": source.location} if starts_as_text else {}

    def publish(self, config: Any, source: ModelSource) -> None:
        super().publish(config, source)
        if config.tokenizer_name_or_path is not None:
            config.tokenizer_name_or_path = source.hub_id or source.location


class PTuningTrainer(MethodTrainer):
    """P-tuning: an adapter holds what the prompt encoder computes, a checkpoint keeps the encoder too."""

    @contextmanager
    def saving(self, model: Any) -> Iterator[None]:
        """Save what the encoder computes without dropout, and draw no random number for it."""
        encoder = model.prompt_encoder[_ADAPTER]
        was_training = encoder.training
        encoder.eval()
        try:
            yield
        finally:
            encoder.train(was_training)

    def state(self, model: Any) -> dict[str, Any]:
        return {"encoder": dict(model.prompt_encoder[_ADAPTER].state_dict())}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the prompt encoder, in place of the embeddings that the adapter holds."""
        model.prompt_encoder[_ADAPTER].load_state_dict(state["encoder"])


METHOD_TRAINERS: dict[str, MethodTrainer] = {
    "lora": LoraTrainer(),
    "adalora": AdaLoraTrainer(),
    "ia3": Ia3Trainer(),
    "prefix_tuning": PrefixTuningTrainer(),
    "prompt_tuning": PromptTuningTrainer(),
    "p_tuning": PTuningTrainer(),
}
_PLAIN = MethodTrainer()


def method_trainer(method: str) -> MethodTrainer:
    """Return the trainer of a method."""
    return METHOD_TRAINERS.get(method, _PLAIN)


def trainer_of_model(model: Any) -> MethodTrainer:
    """Return the trainer of the method that a model has an adapter of."""
    for config in getattr(model, "peft_config", {}).values():
        method = method_of_peft_type(str(getattr(config.peft_type, "value", config.peft_type)))
        return method_trainer(method.name) if method is not None else _PLAIN
    return _PLAIN

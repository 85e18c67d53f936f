"""Methods that learn virtual tokens, which come before every sequence.

Prefix tuning: Li and Liang 2021 (arXiv:2101.00190), without the reparametrization. Prompt tuning: Lester et al. 2021
(arXiv:2104.08691). P-tuning: Liu et al. 2021 (arXiv:2103.10385).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loratory.engine.config.methods.base import PeftMethod, VirtualTokens, cross_field_rule
from loratory.engine.section import Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import AdapterConfig, RunConfig


class _VirtualTokens(PeftMethod):
    """Embeddings, unless a subclass has something else."""

    virtual_tokens: ClassVar[VirtualTokens] = "inputs"
    learning_rate = 5e-3  # PEFT's comparison on MetaMathQA: prefix tuning reaches 0.36 with it, and 0.19 with 1e-3
    starts_as_identity = False
    card: ClassVar[Mapping[str, str]] = {"Virtual tokens": "{num_virtual_tokens}"}
    why_not_mergeable = (
        "it learns embeddings that come before every sequence, and no weight of the model could hold them"
    )


class PrefixTuningSettings(Section):
    """Settings of prefix tuning."""

    prefix_init_text: str | None = setting(
        "Answer the question of the user. Be accurate, clear and complete.", "Prefix starts as", max_length=10_000
    )
    """Text that initializes the prefix, repeated or cut to its length. Empty starts from random ones, which takes far more steps."""


class PrefixTuning(_VirtualTokens):
    """Learned keys and values before every sequence."""

    name = "prefix_tuning"
    label = "Prefix tuning"
    help = "Prefix tuning learns keys and values that come before every sequence. It cannot be merged."
    peft_type = "PREFIX_TUNING"
    peft_class = "PrefixTuningConfig"
    fields = ("num_virtual_tokens", "prefix_init_text")
    same_on_warm_start = ("num_virtual_tokens",)
    virtual_tokens = "keys_and_values"
    why_not_mergeable = (
        "it learns keys and values that come before every sequence, and no weight of the model could hold them"
    )
    checkpointing_conflict = "which drops the learned keys and values"

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; PEFT has a function of its own for the text."""
        arguments = super().peft_arguments(adapter)
        del arguments["prefix_init_text"]
        return arguments

    def initial_text(self, adapter: AdapterConfig) -> str | None:
        """Return the text that initializes the prefix."""
        return (adapter.prefix_init_text or "").strip() or None


class PromptTuningSettings(Section):
    """Settings of prompt tuning."""

    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = setting("RANDOM", "Prompt starts as")
    """RANDOM numbers, embeddings of random tokens, or those of a TEXT. A text that describes the task learns fastest."""
    prompt_tuning_init_text: str | None = setting(None, "Text of the prompt", max_length=10_000)
    """With TEXT: the text that initializes the virtual tokens, repeated or cut to their number."""


@cross_field_rule("adapter.prompt_tuning_init_text")
def _text_is_missing(config: RunConfig) -> Iterator[str]:
    if config.adapter.prompt_tuning_init == "TEXT" and not (config.adapter.prompt_tuning_init_text or "").strip():
        yield "prompt_tuning_init is TEXT, and the text is empty; give one, or choose RANDOM."


class PromptTuning(_VirtualTokens):
    """Learned embeddings before every sequence."""

    name = "prompt_tuning"
    label = "Prompt tuning"
    help = (
        "Prompt tuning learns embeddings that come before every sequence: the fewest parameters, a high learning rate."
    )
    peft_type = "PROMPT_TUNING"
    peft_class = "PromptTuningConfig"
    fields = ("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text")
    rules = (_text_is_missing,)
    same_on_warm_start = ("num_virtual_tokens",)

    def card_rows(self, adapter: AdapterConfig) -> list[tuple[str, str]]:
        """Return virtual tokens, and what they started as."""
        start = adapter.prompt_tuning_init_text if adapter.prompt_tuning_init == "TEXT" else None
        return [*super().card_rows(adapter), ("Prompt starts as", start or adapter.prompt_tuning_init)]

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; the text is left out where it is not read."""
        arguments = super().peft_arguments(adapter)
        if adapter.prompt_tuning_init != "TEXT":
            del arguments["prompt_tuning_init_text"]
        return arguments


class PTuningSettings(Section):
    """Settings of p-tuning."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = setting("MLP", "Prompt encoder")
    """Network that computes the virtual tokens. MLP is the usual choice."""
    encoder_hidden_size: int | None = setting(None, "Encoder width", ge=1, le=65_536)
    """Hidden size of the prompt encoder. Empty takes the model's own; smaller ones save memory."""
    encoder_num_layers: int = setting(2, "Encoder layers", ge=1, le=16)
    """Layers of the prompt encoder, where it is an LSTM."""
    encoder_dropout: float = setting(0.0, "Encoder dropout", ge=0.0, lt=1.0)
    """Dropout between the layers of an LSTM encoder."""


@cross_field_rule("adapter.warm_start")
def _encoder_is_not_saved(config: RunConfig) -> Iterator[str]:
    if config.adapter.warm_start is not None:
        yield (
            "a p-tuning adapter holds the virtual tokens without their encoder, so it cannot be trained further; leave it "
            "empty, or resume the run that trained it."
        )


class PTuning(_VirtualTokens):
    """Embeddings before every sequence, computed by a small network that is trained with them."""

    name = "p_tuning"
    label = "P-tuning"
    help = (
        "P-tuning trains a small network that computes embeddings before every sequence. Steadier than prompt tuning."
    )
    peft_type = "P_TUNING"
    peft_class = "PromptEncoderConfig"
    advanced = ("encoder_num_layers", "encoder_dropout")
    fields = ("num_virtual_tokens", "encoder_reparameterization_type", "encoder_hidden_size", *advanced)
    rules = (_encoder_is_not_saved,)
    card: ClassVar[Mapping[str, str]] = {**_VirtualTokens.card, "Prompt encoder": "{encoder_reparameterization_type}"}

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; PEFT takes the model's width where none is given, and counts layers of an LSTM alone."""
        arguments = super().peft_arguments(adapter)
        if adapter.encoder_hidden_size is None:
            del arguments["encoder_hidden_size"]
        if adapter.encoder_reparameterization_type == "MLP":
            del arguments["encoder_num_layers"], arguments["encoder_dropout"]
        return arguments

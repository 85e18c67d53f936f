"""Methods that learn virtual tokens, which come before every sequence.

Prefix tuning: Li and Liang 2021 (arXiv:2101.00190), without the reparametrization. Prompt tuning: Lester et al. 2021
(arXiv:2104.08691). P-tuning: Liu et al. 2021 (arXiv:2103.10385).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from engine.config.methods.base import PairRule, PeftMethod, Source
from engine.config.section import Section, setting

if TYPE_CHECKING:
    from engine.config.run import AdapterConfig, RunConfig


class PrefixTuning(PeftMethod):
    """Learned keys and values before every sequence."""

    name = "prefix_tuning"
    label = "Prefix tuning"
    help = "Prefix tuning learns keys and values that come before every sequence. It cannot be merged."
    peft_type = "PREFIX_TUNING"
    peft_class = "PrefixTuningConfig"
    fields = ("num_virtual_tokens",)
    same_on_warm_start = ("num_virtual_tokens",)
    virtual_tokens = "keys_and_values"
    mergeable = False
    why_not_mergeable = (
        "it learns keys and values that come before every sequence, and no weight of the model could hold them"
    )
    starts_as_identity = False
    checkpointing_conflict = "which drops the learned keys and values"

    def summary(self, adapter: AdapterConfig) -> str:
        """Return the number of virtual tokens."""
        return f"{adapter.num_virtual_tokens} virtual token{'s' if adapter.num_virtual_tokens != 1 else ''}"


class PromptTuningSettings(Section):
    """Settings of prompt tuning."""

    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = setting(
        "RANDOM",
        label="Prompt starts as",
        help="RANDOM numbers, embeddings of random tokens, or those of a TEXT. A text that describes the task learns fastest.",
    )
    prompt_tuning_init_text: str | None = setting(
        None,
        label="Text of the prompt",
        help="With TEXT: what the virtual tokens start as, repeated or cut to their number.",
        max_length=10_000,
    )


class PromptTuning(PeftMethod):
    """Learned embeddings before every sequence."""

    name = "prompt_tuning"
    label = "Prompt tuning"
    help = (
        "Prompt tuning learns embeddings that come before every sequence: the fewest parameters, a high learning rate."
    )
    peft_type = "PROMPT_TUNING"
    peft_class = "PromptTuningConfig"
    fields = ("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text")
    same_on_warm_start = ("num_virtual_tokens",)
    virtual_tokens = "inputs"
    mergeable = False
    why_not_mergeable = (
        "it learns embeddings that come before every sequence, and no weight of the model could hold them"
    )
    starts_as_identity = False

    def summary(self, adapter: AdapterConfig) -> str:
        """Return the number of virtual tokens."""
        return f"{adapter.num_virtual_tokens} virtual token{'s' if adapter.num_virtual_tokens != 1 else ''}"

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

    def script_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; a text is read by the tokenizer of the model."""
        arguments = super().script_arguments(adapter)
        return arguments | ({"tokenizer_name_or_path": Source("MODEL")} if adapter.prompt_tuning_init == "TEXT" else {})


def _text_is_missing(config: RunConfig) -> str | None:
    adapter = config.adapter
    if not isinstance(adapter.traits, PromptTuning) or adapter.prompt_tuning_init != "TEXT":
        return None
    if not (adapter.prompt_tuning_init_text or "").strip():
        return "prompt_tuning_init is TEXT, and there is no text; give one, or choose RANDOM."
    return None


PromptTuning.rules = (
    PairRule(
        "adapter.prompt_tuning_init_text",
        ("adapter.method", "adapter.prompt_tuning_init", "adapter.prompt_tuning_init_text"),
        _text_is_missing,
    ),
)


class PTuningSettings(Section):
    """Settings of p-tuning."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = setting(
        "MLP", label="Prompt encoder", help="Network that computes the virtual tokens. MLP is the usual choice."
    )
    encoder_hidden_size: int | None = setting(
        None,
        label="Encoder width",
        help="Hidden size of the prompt encoder. Empty takes the model's own; smaller ones save memory.",
        ge=1,
        le=65_536,
    )
    encoder_num_layers: int = setting(
        2, label="Encoder layers", help="Layers of the prompt encoder, where it is an LSTM.", ge=1, le=16
    )
    encoder_dropout: float = setting(
        0.0, label="Encoder dropout", help="Dropout between the layers of an LSTM encoder.", ge=0.0, lt=1.0
    )


class PTuning(PeftMethod):
    """Embeddings before every sequence, computed by a small network that is trained with them."""

    name = "p_tuning"
    label = "P-tuning"
    help = (
        "P-tuning trains a small network that computes embeddings before every sequence. Steadier than prompt tuning."
    )
    peft_type = "P_TUNING"
    peft_class = "PromptEncoderConfig"
    fields = (
        "num_virtual_tokens",
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
    )
    advanced = fields[3:]
    virtual_tokens = "inputs"
    mergeable = False
    why_not_mergeable = (
        "it learns embeddings that come before every sequence, and no weight of the model could hold them"
    )
    starts_as_identity = False

    def summary(self, adapter: AdapterConfig) -> str:
        """Return the number of virtual tokens."""
        return f"{adapter.num_virtual_tokens} virtual token{'s' if adapter.num_virtual_tokens != 1 else ''}"

    def card_rows(self, adapter: AdapterConfig) -> list[tuple[str, str]]:
        """Return virtual tokens and encoder."""
        return [*super().card_rows(adapter), ("Prompt encoder", adapter.encoder_reparameterization_type)]

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; PEFT takes the model's width where none is given, and counts layers of an LSTM alone."""
        arguments = super().peft_arguments(adapter)
        if adapter.encoder_hidden_size is None:
            del arguments["encoder_hidden_size"]
        if adapter.encoder_reparameterization_type == "MLP":
            del arguments["encoder_num_layers"], arguments["encoder_dropout"]
        return arguments


def _encoder_is_not_saved(config: RunConfig) -> str | None:
    if isinstance(config.adapter.traits, PTuning) and config.adapter.warm_start is not None:
        return (
            "a p-tuning adapter holds the virtual tokens without their encoder, so it cannot be trained further; leave it "
            "empty, or resume the run that trained it."
        )
    return None


PTuning.rules = (PairRule("adapter.warm_start", ("adapter.method", "adapter.warm_start"), _encoder_is_not_saved),)

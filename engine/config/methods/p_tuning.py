"""P-tuning: Liu et al. 2021 (arXiv:2103.10385)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from engine.config.methods.base import PairRule, PeftMethod
from engine.config.section import Section, setting

if TYPE_CHECKING:
    from engine.config.adapter import AdapterConfig
    from engine.config.run import RunConfig


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

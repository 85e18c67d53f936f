"""Prompt tuning: Lester et al. 2021 (arXiv:2104.08691)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from engine.config.methods.base import PairRule, PeftMethod, Source
from engine.config.section import Section, setting

if TYPE_CHECKING:
    from engine.config.adapter import AdapterConfig
    from engine.config.run import RunConfig


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

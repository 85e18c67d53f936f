"""Prefix tuning: Li and Liang 2021 (arXiv:2101.00190), without the reparametrization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.config.methods.base import PeftMethod

if TYPE_CHECKING:
    from engine.config.adapter import AdapterConfig


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

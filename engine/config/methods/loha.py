"""LoHa: low-rank Hadamard products, Hyeon-Woo et al. 2022 (arXiv:2108.06098)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine.config.methods.base import PeftMethod
from engine.config.section import Section, setting

if TYPE_CHECKING:
    from engine.config.adapter import AdapterConfig


class LycorisSettings(Section):
    """Settings of LoHa, some of which other methods of the LyCORIS family read as well."""

    alpha: int = setting(
        8, label="Alpha", help="Strength of the adapter: its update is multiplied by alpha / r.", ge=1, le=4096
    )
    rank_dropout: float = setting(
        0.0,
        label="Rank dropout",
        help="Share of the rows of an update that are dropped while training.",
        ge=0.0,
        lt=1.0,
    )
    module_dropout: float = setting(
        0.0, label="Module dropout", help="How often a layer's whole update is left out while training.", ge=0.0, lt=1.0
    )


class LoHa(PeftMethod):
    """The element-wise product of two low-rank matrices for each layer."""

    name = "loha"
    label = "LoHa"
    help = "LoHa multiplies two low-rank updates, which makes their rank high. Slower than LoRA, with more memory."
    peft_type = "LOHA"
    peft_class = "LoHaConfig"
    fields = ("r", "alpha", "target_modules", "modules_to_save", "rank_dropout", "module_dropout")
    advanced = ("modules_to_save", "rank_dropout", "module_dropout")
    defaults: ClassVar[Mapping[str, Any]] = {"r": 8}
    same_on_warm_start = ("r", "alpha")
    quantization = frozenset()
    layer_kinds = frozenset({"linear"})
    tensor_marks = ("hada_",)

    def summary(self, adapter: AdapterConfig) -> str:
        """Return the rank."""
        return f"r {adapter.r}"

    def card_rows(self, adapter: AdapterConfig) -> list[tuple[str, str]]:
        """Return rank, alpha and layers."""
        return [("Rank, alpha", f"{adapter.r}, {adapter.alpha}"), *super().card_rows(adapter)]

"""The LyCORIS family: LoHa, low-rank Hadamard products, Hyeon-Woo et al. 2022 (arXiv:2108.06098), and LoKr, low-rank
Kronecker products, Yeh et al. 2024 (arXiv:2309.14859).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.section import Section, setting


class LycorisSettings(Section):
    """Settings of LoHa, some of which other methods of the LyCORIS family read as well."""

    alpha: int = setting(8, "Alpha", ge=1, le=4096)
    """Strength of the adapter: its update is multiplied by alpha / r."""
    rank_dropout: float = setting(0.0, "Rank dropout", ge=0.0, lt=1.0)
    """Share of the rows of an update that are dropped while training."""
    module_dropout: float = setting(0.0, "Module dropout", ge=0.0, lt=1.0)
    """How often a layer's whole update is left out while training."""


class LoKrSettings(Section):
    """Settings of LoKr alone; it reads those of the LyCORIS family as well."""

    decompose_both: bool = setting(False, "Decompose both factors")
    """Makes the smaller factor of the product low-rank too: fewer parameters."""
    decompose_factor: int = setting(-1, "Factor", ge=-1, le=4096)
    """Size of the smaller factor of the product. -1 takes the divisors nearest to the square root."""
    rank_dropout_scale: bool = setting(False, "Scale rank dropout")
    """Makes up for dropped rows by strengthening the rest."""


class _LycorisMethod(PeftMethod):
    defaults: ClassVar[Mapping[str, Any]] = {"r": 8}
    quantization = frozenset()
    layer_kinds = frozenset({"linear"})
    card: ClassVar[Mapping[str, str]] = {"Rank, alpha": "{r}, {alpha}"}


class LoHa(_LycorisMethod):
    """The element-wise product of two low-rank matrices for each layer."""

    name = "loha"
    label = "LoHa"
    help = "LoHa multiplies two low-rank updates, which makes their rank high. Slower than LoRA, with more memory."
    peft_type = "LOHA"
    peft_class = "LoHaConfig"
    advanced = ("modules_to_save", "rank_dropout", "module_dropout")
    fields = ("r", "alpha", "target_modules", *advanced)
    same_on_warm_start = ("r", "alpha")
    tensor_marks = ("hada_",)


class LoKr(_LycorisMethod):
    """The Kronecker product of a small matrix and a low-rank one for each layer."""

    name = "lokr"
    label = "LoKr"
    help = "LoKr builds each update as a Kronecker product: fewer parameters than LoRA at the same rank, slower, with more memory."
    peft_type = "LOKR"
    peft_class = "LoKrConfig"
    advanced = (*LoHa.advanced, "decompose_both", "decompose_factor", "rank_dropout_scale")
    fields = ("r", "alpha", "target_modules", *advanced)
    same_on_warm_start = ("r", "alpha", "decompose_both", "decompose_factor")
    tensor_marks = ("lokr_",)

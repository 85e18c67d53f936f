"""VeRA: vector-based random matrix adaptation, Kopiczko et al. 2024 (arXiv:2310.11454)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine.config.methods.base import PeftMethod
from engine.config.section import Section, setting

if TYPE_CHECKING:
    from engine.config.run import AdapterConfig


class VeraSettings(Section):
    """Settings of VeRA."""

    vera_dropout: float = setting(
        0.0, "VeRA dropout", "Share of adapter inputs dropped while training.", ge=0.0, lt=1.0
    )
    d_initial: float = setting(
        0.1, "First scale", "Where the trained scales begin. 0.1 and less works best.", gt=0.0, le=10.0
    )
    projection_prng_key: int = setting(
        0, "Projection seed", "Draws the two random matrices that all layers share.", ge=0, le=2**31 - 1
    )
    save_projection: bool = setting(
        True,
        "Save projections",
        "Saves the random matrices with the adapter. Without them it is tiny, and drawn again where it is loaded.",
    )


class Vera(PeftMethod):
    """Two vectors for each layer, which scale random matrices that all layers share."""

    name = "vera"
    label = "VeRA"
    help = "VeRA trains two vectors per layer on random matrices that all layers share: a tiny adapter at a high rank."
    peft_type = "VERA"
    peft_class = "VeraConfig"
    advanced = ("modules_to_save", "d_initial", "projection_prng_key", "save_projection")
    fields = ("r", "vera_dropout", "target_modules", *advanced)
    defaults: ClassVar[Mapping[str, Any]] = {"r": 256}
    same_on_warm_start = ("r", "projection_prng_key")
    tensor_marks = ("vera_",)

    def card_rows(self, adapter: AdapterConfig) -> list[tuple[str, str]]:
        """Return rank, seed and layers."""
        seed = ("Projection seed", f"{adapter.projection_prng_key}")
        return [("Rank", f"{adapter.r}"), seed, *super().card_rows(adapter)]

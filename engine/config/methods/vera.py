"""VeRA: vector-based random matrix adaptation, Kopiczko et al. 2024 (arXiv:2310.11454)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from engine.config.methods.base import PeftMethod
from engine.config.section import Magnitude, Section, setting


class VeraSettings(Section):
    """Settings of VeRA."""

    vera_dropout: float = setting(0.0, "VeRA dropout", ge=0.0, lt=1.0)
    """Share of adapter inputs dropped while training."""
    d_initial: Magnitude = setting(0.1, "First scale", gt=0.0, le=10.0)
    """Where the trained scales begin. 0.1 and less works best."""
    projection_prng_key: int = setting(0, "Projection seed", ge=0, le=2**31 - 1)
    """Draws the two random matrices that all layers share."""
    save_projection: bool = setting(True, "Save projections")
    """Saves the random matrices with the adapter. Without them it is tiny, and drawn again where it is loaded."""


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
    learning_rate = 4e-3
    same_on_warm_start = ("r", "projection_prng_key")
    card: ClassVar[Mapping[str, str]] = {"Rank": "{r}", "Projection seed": "{projection_prng_key}"}
    tensor_marks = ("vera_",)

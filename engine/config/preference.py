"""What a run optimizes, and the settings of preference tuning, under TRL's names."""

from typing import Annotated, Literal

from pydantic import Field

from engine.config.section import Magnitude, Section, setting

ObjectiveName = Literal["sft", "dpo", "kto", "orpo"]
PreferenceLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "sigmoid_norm", "sft", "kto", "apo_zero_unpaired",
]  # fmt: skip


class ObjectiveSettings(Section):
    """What is optimized. Names and defaults are those of TRL's DPOConfig, KTOConfig and ORPOConfig; sft ignores all but the first."""

    objective: ObjectiveName = setting("sft", "Objective")
    """sft learns answers; dpo and orpo prefer one answer of a pair to the other; kto learns from answers rated good or bad."""
    beta: Magnitude = setting(0.1, "Beta", gt=0, le=100)
    """Strength of the preference: higher stays closer to the reference model (dpo, kto), or weighs the odds ratio more (orpo)."""
    loss_type: tuple[PreferenceLoss, ...] = setting((), "Preference loss", max_length=4)
    """Empty takes sigmoid for dpo and kto for kto. Several of dpo are added; sft among them keeps the chosen answers likely."""
    loss_weights: tuple[Annotated[float, Field(gt=0, le=100)], ...] = setting((), "Loss weights", max_length=4)
    """One factor for each preference loss. Empty weighs each with 1."""
    label_smoothing: Magnitude = setting(0.0, "Label smoothing", ge=0, lt=0.5)
    """Share of pairs whose preference may be wrong, for robust and exo_pair. 0.1 suits noisy votes, 0.001 suits exo_pair."""
    desirable_weight: Magnitude = setting(1.0, "Desirable weight", gt=0, le=100)
    """Factor of good answers in kto. Raise it where there are fewer of them than of bad ones."""
    undesirable_weight: Magnitude = setting(1.0, "Undesirable weight", gt=0, le=100)
    """Factor of bad answers in kto. Raise it where there are fewer of them than of good ones."""
    disable_dropout: bool = setting(True, "Disable dropout")
    """Trains without dropout, so model and reference differ by nothing but the adapter."""
    precompute_ref_log_probs: bool = setting(False, "Precompute reference")
    """Asks the reference model once before training instead of at every step: faster from the second epoch on."""

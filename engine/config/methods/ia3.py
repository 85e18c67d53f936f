"""IA3: Liu et al. 2022 (arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loratory.engine.config.methods.base import PeftMethod, cross_field_rule
from loratory.engine.section import Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import RunConfig

# Endings of the names of feed-forward layers, where the person leaves the choice to the model's family.
# Source: peft/utils/constants.py, TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.
FEEDFORWARD_ENDINGS = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")


class Ia3Settings(Section):
    """Settings of IA3."""

    feedforward_modules: tuple[str, ...] = setting((), "IA3 feed-forward modules", max_length=50)
    """Which of IA3's target modules are feed-forward: their input is rescaled instead of their output. Empty lets the model's family decide."""


@cross_field_rule("adapter.feedforward_modules")
def _feedforward_outside_targets(config: RunConfig) -> Iterator[str]:
    targets = config.adapter.target_modules
    outside = [name for name in config.adapter.feedforward_modules if name not in targets]
    if outside and not isinstance(targets, str):
        yield f"{', '.join(outside)} must be among target_modules too; add them there, or take them out here."


class Ia3(PeftMethod):
    """One learned vector for each chosen layer."""

    name = "ia3"
    label = "IA3"
    help = "IA3 learns to rescale keys, values and feed-forward activations: very few parameters, a high learning rate."
    peft_type = "IA3"
    peft_class = "IA3Config"
    fields = ("target_modules", "modules_to_save", "feedforward_modules")
    advanced = ("modules_to_save", "feedforward_modules")
    learning_rate = 5e-3
    tensor_marks = ("ia3_",)
    rules = (_feedforward_outside_targets,)

    def card_rows(self, adapter: object) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return no rows: the method's name is all there is to know."""
        return []

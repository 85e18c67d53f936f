"""Choose how rows go through a given model and with which kernels, and check the choice on a few rows.

Faster kernels must compute the same. This is measured for each model: its loss must stay the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from trl.trainer.utils import disable_dropout_in_model

from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import RunConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.data.step_plan import PlanSettings
from loratory.engine.errors import ModelError
from loratory.engine.models.batching import shares_prompts
from loratory.engine.training.batching.batches import join
from loratory.engine.training.batching.choose import choose_row_attention
from loratory.engine.training.batching.images import ImageInputs
from loratory.engine.training.batching.probe import Probe, losses_match
from loratory.engine.training.batching.steps import TrainerSetup
from loratory.engine.training.image_parts import language_model_of, trained_vision
from loratory.engine.training.kernels import use_fused_loss, use_layer_kernels, why_not_compiled
from loratory.engine.training.methods.registry import method_trainer
from loratory.engine.training.objectives.base import TrainingObjective
from loratory.engine.training.objectives.grpo import GroupRelativePolicy
from loratory.engine.training.objectives.preferences import DirectPreference, KahnemanTversky, OddsRatio
from loratory.engine.training.objectives.reference import ReferenceModel
from loratory.engine.training.ops.loss import attach_loss, causal_lm_of
from loratory.engine.training.placement import Placement, TrainingDtypes

# By the names in `loratory.engine.config.objectives`.
TRAINING_OBJECTIVES: Mapping[str, type[TrainingObjective]] = {
    objective.traits.name: objective
    for objective in (TrainingObjective, DirectPreference, OddsRatio, KahnemanTversky, GroupRelativePolicy)
}


@dataclass(frozen=True)
class Assembly:
    """A model that is ready for the trainer."""

    setup: TrainerSetup
    attention: str  # its name for the person
    notes: tuple[str, ...] = ()  # what was tried and given up
    # Of `loratory.engine.config.optimizations`: why one is not used, "" where it is.
    optimizations: Mapping[str, str] = field(default_factory=dict)

    def with_settings(self, **changes: Any) -> "Assembly":
        """Return the same model with other settings of its steps."""
        return replace(self, setup=replace(self.setup, settings=replace(self.setup.settings, **changes)))


def assemble(
    model: Any,
    config: RunConfig,
    precision: TrainingDtypes,
    placement: Placement,
    rows: Sequence[TokenizedRow],
    pad_token_id: int,
    images: ImageInputs | None = None,
) -> Assembly:
    """Attach the loss, use faster kernels where wanted, and choose how rows are batched.

    The choice is tried on a few rows: loss and attention must be those of the model by itself. `images` are given where
    rows have some.

    Raises:
        ModelError: If the loss is not finite, or if packing is wanted and the model cannot keep joined rows apart.
    """
    method, traits = method_trainer(config.adapter.method), objective_of(config)
    # Sequences of prompts grow by their answers.
    training = config.training.model_copy(update={"max_length": traits.longest_sequence(config)})
    config = config.model_copy(update={"training": training})
    if "disable_dropout" in traits.settings and training.disable_dropout:
        disable_dropout_in_model(model)
    warm_started = config.adapter.warm_start is not None
    reference = ReferenceModel.from_model(model, warm_started=warm_started) if traits.compares(config) else None
    causal_lm = causal_lm_of(model)
    notes: list[str] = []
    model.eval()
    # What is trained is held in float32 and must be cast for each product, except by the quick branches.
    quick = method.prepare(model) == sum(p.requires_grad for p in model.parameters())
    autocast = None if quick or precision.compute is torch.float32 else precision.compute
    probe = Probe.from_rows(model, rows, training.max_length, pad_token_id, autocast)
    with method.observing(model):
        expected = probe.own_loss()
    _require_finite(expected, causal_lm, precision)
    inputs = config.adapter.traits.count_virtual_inputs(config.adapter)
    attach = partial(attach_loss, causal_lm, virtual_inputs=inputs, seeing=trained_vision(model))
    attach()
    if losses_match(probe.loss(probe.padded()), expected):
        optimizations = {"fused_loss": use_fused_loss(probe, placement, expected, partial(attach, fused=True))}
    else:
        attach(through_logits=True)
        notes.append("This model changes its logits in a way of its own, so all of them are computed.")
        optimizations = {"fused_loss": "the model changes its logits in a way of its own"}
    optimizations |= use_layer_kernels(probe, config, placement, expected)
    own_attention = str(language_model_of(causal_lm).config._attn_implementation)
    attention = choose_row_attention(probe, config, placement, expected, has_images=images is not None)
    notes.extend(attention.notes)
    joined = attention.batching == "joined"
    if training.packing and not joined:
        what = f"{type(causal_lm).__name__} cannot keep packed rows apart with {own_attention} attention."
        if images is not None:
            what = "Rows with images are padded, and cannot be packed."
        raise ModelError(what, "Switch packing off, or set attn_implementation to auto.")
    few = join(probe.rows, flash=attention.flash) if joined else probe.padded(masked=attention.masked)
    if training.torch_compile and (reason := why_not_compiled(probe, config, placement, expected, few)):
        notes.append(f"torch.compile is not used: {reason}.")
    if "temperature" in traits.settings and training.temperature != 1.0:
        through_logits = optimizations["fused_loss"].endswith("of its own")
        attach(through_logits=through_logits, fused=not optimizations["fused_loss"], temperature=training.temperature)
    has_shared_prompts = shares_prompts(attention.batching, config, placement.torch_device.type)
    optimizations["shared_prompts"] = "" if has_shared_prompts else "needs joined answers to one prompt on a processor"
    group, sequences = placement.group, traits.sequences_per_example
    settings = PlanSettings(
        training,
        attention.batching,
        group.world_size,
        group.rank,
        sequences,
        shares_prompts=has_shared_prompts,
        repeats=traits.steps_per_batch(training),
    )
    setup = TrainerSetup(
        settings,
        pad_token_id,
        flash=attention.flash,
        masked=attention.masked,
        attention=own_attention,
        autocast=autocast,
        objective=TRAINING_OBJECTIVES[traits.name](training, reference),
        method=method,
        images=images,
    )
    optimizations |= attention.why_not | method.optimizations(model)
    return Assembly(setup, attention.name, tuple(notes), optimizations)


def _require_finite(loss: float, causal_lm: Any, precision: TrainingDtypes) -> None:
    """Refuse a model that cannot be trained as it is loaded; comparing its losses would prove nothing."""
    if not math.isfinite(loss):
        raise ModelError(
            f"The loss of {type(causal_lm).__name__} is {loss} before any training, in {precision.compute_name}.",
            "Choose another model, or get its weights again: they hold NaN or infinity."
            if precision.compute is torch.float32
            else "Set model.compute_dtype to float32.",
        )

"""Choose how rows go through a given model and with which kernels, and check the choice on a few rows.

Faster kernels replace how something is computed and not what. Whether that is true of the model at hand is measured: its loss
must stay the same.
"""

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.trainer.utils import disable_dropout_in_model

from engine.config.objectives import objective_of
from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.config.run import RunConfig
from engine.data.render.tokenize import TokenizedRow
from engine.data.step_plan import PlanSettings
from engine.errors import ModelError
from engine.models.batching import shares_prompts
from engine.training.batching.batches import PassTensors, join
from engine.training.batching.choose import RowAttention, choose_row_attention
from engine.training.batching.probe import Probe, agrees
from engine.training.batching.steps import TrainerSetup
from engine.training.failure import is_out_of_memory
from engine.training.kernels import use_layer_kernels, why_no_fused_loss
from engine.training.methods.registry import method_trainer
from engine.training.objectives.base import TrainingObjective
from engine.training.objectives.pairs import DirectPreference, OddsRatio
from engine.training.objectives.ratings import KahnemanTversky
from engine.training.objectives.reference import Reference
from engine.training.ops.attention import JOINED_ATTENTION, joined_attention
from engine.training.ops.loss import attach_loss, causal_lm_of, logit_transform
from engine.training.placement import Placement
from engine.training.precision import Precision

# By the names in `engine.config.objectives`.
TRAINING_OBJECTIVES: Mapping[str, type[TrainingObjective]] = {
    objective.traits.name: objective for objective in (TrainingObjective, DirectPreference, OddsRatio, KahnemanTversky)
}


@dataclass(frozen=True)
class Assembly:
    """A model that is ready for the trainer."""

    setup: TrainerSetup
    attention: str  # in words, for the person
    notes: tuple[str, ...] = ()  # what was tried and given up
    # Of `engine.config.optimizations`: why one is not used, "" where it is.
    optimizations: Mapping[str, str] = field(default_factory=dict)


def assemble(
    model: Any,
    config: RunConfig,
    precision: Precision,
    placement: Placement,
    rows: Sequence[TokenizedRow],
    pad_token_id: int,
) -> Assembly:
    """Attach the loss, use faster kernels where wanted, and choose how rows are batched.

    The choice is tried on a few rows: what our loss and our attention give must be what the model by itself gives.

    Raises:
        ModelError: If the loss is not finite, or if packing is wanted and the model cannot keep joined rows apart.
    """
    training, method, traits = config.training, method_trainer(config.adapter.method), objective_of(config)
    if traits.learns_preferences and training.disable_dropout:
        disable_dropout_in_model(model)
    reference = (
        Reference.of(model, warm_started=config.adapter.warm_start is not None) if traits.has_reference else None
    )
    causal_lm = causal_lm_of(model)
    notes: list[str] = []
    model.eval()
    # What is trained is held in float32 and must be cast for each product, except by the quick branches.
    quick = method.prepare(model) == sum(p.requires_grad for p in model.parameters())
    autocast = None if quick or precision.compute is torch.float32 else precision.compute
    probe = Probe.of(model, rows, training.max_length, pad_token_id, autocast)
    with method.observing(model):
        expected = probe.own_loss()
    _require_finite(expected, causal_lm, precision)
    inputs = config.adapter.traits.count_virtual_inputs(config.adapter)
    used = {"fused_loss": _why_no_fused_loss(causal_lm, placement, autocast)}
    attach_loss(causal_lm, virtual_inputs=inputs, fused=not used["fused_loss"])
    if not agrees(probe.loss(probe.padded()), expected):
        attach_loss(causal_lm, through_logits=True, virtual_inputs=inputs)
        notes.append("This model changes its logits in a way of its own, so all of them are computed.")
        used["fused_loss"] = "the model changes its logits in a way of its own"
    used |= use_layer_kernels(probe, config, placement, expected)
    own_attention = str(causal_lm.config._attn_implementation)
    attention = choose_row_attention(probe, config, placement, expected)
    notes.extend(attention.notes)
    joined = attention.batching == "joined"
    if training.packing and not joined:
        what = f"{type(causal_lm).__name__} cannot keep packed rows apart with {own_attention} attention."
        raise ModelError(what, "Switch packing off, or set attn_implementation to auto.")
    few = join(probe.rows, flash=attention.flash) if joined else probe.padded(masked=attention.masked)
    notes.extend(_compiled(probe, config, placement, few))
    group = placement.group
    used["shared_prompts"] = _why_no_shared_prompts(probe, config, attention, placement)
    settings = PlanSettings(
        training,
        attention.batching,
        group.world_size,
        group.rank,
        traits.sequences_per_example,
        shares_prompts=not used["shared_prompts"],
    )
    setup = TrainerSetup(
        settings,
        pad_token_id,
        flash=attention.flash,
        masked=attention.masked,
        autocast=autocast,
        prefetches=placement.torch_device.type != "cpu",
        objective=TRAINING_OBJECTIVES[traits.name](training, reference),
        method=method,
    )
    return Assembly(setup, attention.name, tuple(notes), used | attention.why_not | method.optimizations(model))


def _why_no_fused_loss(causal_lm: Any, placement: Placement, autocast: torch.dtype | None) -> str:
    head = causal_lm.get_output_embeddings().weight
    transform = logit_transform(causal_lm.config.get_text_config())
    return why_no_fused_loss(placement.torch_device, autocast or head.dtype, head.shape[0], transform)


def _why_no_shared_prompts(probe: Probe, config: RunConfig, attention: RowAttention, placement: Placement) -> str:
    if not is_wanted("shared_prompts"):
        return LEFT_OUT
    if not shares_prompts(attention.batching, config, placement.torch_device.type):
        return "needs joined pairs on a processor"
    return "" if probe.shares_prompts() else "the model's losses differ"


def _require_finite(loss: float, causal_lm: Any, precision: Precision) -> None:
    """Refuse a model that cannot be trained as it is loaded; comparing its losses would prove nothing."""
    if not math.isfinite(loss):
        raise ModelError(
            f"The loss of {type(causal_lm).__name__} is {loss} before any training, in {precision.compute_name}.",
            "Choose another model, or get its weights again: they hold NaN or infinity."
            if precision.compute is torch.float32
            else "Set model.compute_dtype to float32.",
        )


def why_not_compiled(placement: Placement) -> str | None:
    """Why torch.compile cannot be used, in words; None where it can."""
    if placement.torch_device.type != "cuda":
        return "torch.compile helps on CUDA only: on a processor it costs more than it gains; running without it."
    if placement.spread:
        return "torch.compile cannot follow layers from one GPU to the next; running without it."
    if placement.sharded:
        return "torch.compile cannot follow sharded layers; running without it."
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton, which is not installed; running without it."
    return None


def _compiled(probe: Probe, config: RunConfig, placement: Placement, rows: PassTensors) -> list[str]:
    """Compile the layers where wanted, and try them forward and backward; return notes for the person."""
    if not config.training.torch_compile:
        return []
    if (refused := why_not_compiled(placement)) is not None:
        return [refused]
    model, before = probe.model, probe.loss(rows)
    graphs = compiled_graphs()
    compile_layers(model)
    one = rows.to(next(model.parameters()).device)
    try:
        with probe.casting():
            loss = model(**one.inputs, trained_tokens=one.trained)
        loss.backward()
        works = agrees(float(loss.detach()), before)
    except Exception as error:  # compilers fail as anything
        if is_out_of_memory(error):
            raise
        works = False
    model.zero_grad(set_to_none=True)
    if works and compiled_graphs() > graphs:
        return []
    leave_uncompiled(model)
    # With gradient checkpointing, a layer with a part that stays uncompiled, such as LoRA's, is skipped as a whole.
    outcome = "compiles nothing of" if works else "fails on"
    with_checkpoints = " with gradient checkpointing" if works and config.training.gradient_checkpointing else ""
    return [f"torch.compile {outcome} {type(model).__name__}{with_checkpoints}; running without it."]


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> int:
    """Compile each decoder layer by itself, for any length of rows; returns how many.

    One graph serves all layers of a kind, so a deep model compiles as quickly as a flat one. Our LoRA branch writes
    into its input, which a compiler cannot follow, and our attention goes from row to row; both stay outside, and what is
    fused are the steps between products.
    """
    os.environ.pop("TORCHDYNAMO_DISABLE", None)  # workers have it while they import: `engine.processes.spawn`
    AttentionInterface.register(JOINED_ATTENTION, torch.compiler.disable(joined_attention))
    for module in model.modules():
        if "forward" in vars(module) and hasattr(module, "lora_A"):
            module.forward = torch.compiler.disable(module.forward)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def leave_uncompiled(model: torch.nn.Module) -> None:
    """Undo `compile_layers`."""
    for module in model.modules():
        module._compiled_call_impl = None

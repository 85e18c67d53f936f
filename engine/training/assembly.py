"""Choose how rows go through a given model, by its architecture, and check the choice on a few rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.config.objectives import objective_of
from engine.config.run import RunConfig
from engine.errors import ModelError
from engine.inspector.worker.architecture import read_attention
from engine.models.batching import choose_batching
from engine.training.batching.batches import PassTensors, TokenRow, join
from engine.training.batching.plan import PlanSettings
from engine.training.batching.probe import Probe, agrees
from engine.training.batching.steps import TrainerSetup
from engine.training.failure import is_out_of_memory
from engine.training.methods.registry import method_trainer
from engine.training.objectives import TRAINING_OBJECTIVES
from engine.training.ops.attention import JOINED_ATTENTION, register_joined_attention
from engine.training.ops.kernels import compile_layers, leave_uncompiled, use_liger_kernels, why_not_compiled
from engine.training.ops.loss import attach_loss, causal_lm_of
from engine.training.placement import Placement
from engine.training.precision import Precision


@dataclass(frozen=True)
class Assembly:
    """A model that is ready for the trainer."""

    setup: TrainerSetup
    attention: str  # in words, for the person
    notes: tuple[str, ...] = ()  # what was tried and given up


def assemble(
    model: Any,
    config: RunConfig,
    precision: Precision,
    placement: Placement,
    rows: Sequence[TokenRow],
    pad_token_id: int,
) -> Assembly:
    """Attach the loss, use faster kernels where wanted, and choose how rows are batched.

    The choice is tried on a few rows: what our loss and our attention give must be what the model by itself gives.

    Raises:
        ModelError: If the loss is not finite, if packing is wanted and the model cannot keep joined rows apart, or if Liger's
            kernels change its loss.
    """
    causal_lm = causal_lm_of(model)
    notes: list[str] = []
    model.eval()
    autocast = _autocast(model, config, precision)
    probe = Probe.of(model, rows, config.training.max_length, pad_token_id, autocast)
    expected = probe.own_loss()
    _require_finite(expected, causal_lm, precision)
    inputs = config.adapter.traits.count_virtual_inputs(config.adapter)
    attach_loss(causal_lm, virtual_inputs=inputs)
    if not agrees(probe.loss(probe.padded()), expected):
        attach_loss(causal_lm, through_logits=True, virtual_inputs=inputs)
        notes.append("This model changes its logits in a way of its own, so all of them are computed.")
    notes.extend(_with_liger(causal_lm, config, placement, lambda: probe.loss(probe.padded()), expected))
    own_attention = str(causal_lm.config._attn_implementation)
    flash = own_attention.startswith("flash_attention")
    facts, kind = read_attention(causal_lm), placement.torch_device.type
    batching = choose_batching(facts, own_attention, config, kind)
    if batching == "joined":
        apart = probe.attention_apart()
        if not flash:
            register_joined_attention()
            causal_lm.set_attn_implementation(JOINED_ATTENTION)
        joins = probe.joins(expected, apart, flash=flash)
        batching = choose_batching(facts, own_attention, config, kind, trial_agrees=joins)
        if batching == "padded":
            notes.append("This model does not keep joined rows apart, so its rows are padded.")
            causal_lm.set_attn_implementation(own_attention)
    joined = batching == "joined"
    if config.training.packing and not joined:
        raise ModelError(
            f"{type(causal_lm).__name__} cannot keep packed rows apart with {own_attention} attention.",
            "Switch packing off, or set attn_implementation to auto.",
        )
    notes.extend(_compiled(probe, config, placement, join(probe.rows, flash=flash) if joined else probe.padded()))
    settings = PlanSettings(
        seed=config.training.seed,
        per_device_train_batch_size=config.training.per_device_train_batch_size,
        gradient_accumulation_steps=config.training.gradient_accumulation_steps,
        max_length=config.training.max_length,
        packing=config.training.packing,
        batching=batching,
        train_sampling_strategy=config.training.train_sampling_strategy,
        world_size=placement.group.world_size,
        rank=placement.group.rank,
        sequences_per_row=objective_of(config).sequences_per_example,
    )
    name = own_attention if not joined or flash else f"{own_attention}, row by row"
    prefetches = placement.torch_device.type != "cpu"
    objective = TRAINING_OBJECTIVES[objective_of(config).name]
    setup = TrainerSetup(
        settings, pad_token_id, flash, autocast, prefetches, objective, method_trainer(config.adapter.method)
    )
    return Assembly(setup, name, tuple(notes))


def _autocast(model: Any, config: RunConfig, precision: Precision) -> torch.dtype | None:
    """Speed the adapter up; what else is trained is held in float32 and must be cast for each product."""
    quick = method_trainer(config.adapter.method).prepare(model)
    if precision.compute is torch.float32:
        return None
    return None if quick == sum(p.requires_grad for p in model.parameters()) else precision.compute


def _with_liger(
    causal_lm: Any, config: RunConfig, placement: Placement, loss: Callable[[], float], expected: float
) -> list[str]:
    """Use Liger's kernels where wanted; return notes for the person."""
    refused = use_liger_kernels(causal_lm, config, placement)
    if refused is not None:
        return [refused]
    if config.training.use_liger_kernel and not agrees(loss(), expected):
        raise ModelError(
            f"Liger's kernels change the loss of {type(causal_lm).__name__}.", "Switch training.use_liger_kernel off."
        )
    return []


def _compiled(probe: Probe, config: RunConfig, placement: Placement, rows: PassTensors) -> list[str]:
    """Compile the layers where wanted, and try them forward and backward; return notes for the person."""
    refused = why_not_compiled(config, placement)
    if refused is not None:
        return [refused]
    if not config.training.torch_compile:
        return []
    model, before = probe.model, probe.loss(rows)
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
    if works:
        return []
    leave_uncompiled(model)
    return [f"torch.compile fails on {type(model).__name__}; running without it."]


def _require_finite(loss: float, causal_lm: Any, precision: Precision) -> None:
    """Refuse a model that cannot be trained as it is loaded; comparing its losses would prove nothing.

    Raises:
        ModelError: If its loss is NaN or infinite.
    """
    if math.isfinite(loss):
        return
    name = type(causal_lm).__name__
    if precision.compute_name == "float32":
        raise ModelError(
            f"The loss of {name} is {loss} before any training, in float32.",
            "Choose another model, or get its weights again: they hold NaN or infinity.",
        )
    raise ModelError(
        f"The loss of {name} is {loss} before any training, in {precision.compute_name}.",
        "Set model.compute_dtype to float32.",
    )

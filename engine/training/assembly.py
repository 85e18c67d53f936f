"""How rows go through a given model: decided by what it is, and then measured instead of believed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from engine.config.run import RunConfig
from engine.errors import ModelError
from engine.inspector.architecture import read_attention
from engine.models.batching import choose_batching
from engine.training.attention import JOINED_ATTENTION, UnsupportedAttentionError, register_joined_attention
from engine.training.batches import PassTensors, TokenRow, join, pad
from engine.training.kernels import compile_layers, leave_uncompiled, use_liger_kernels, why_not_compiled
from engine.training.loss import attach_loss
from engine.training.placement import Placement
from engine.training.plan import PlanSettings
from engine.training.precision import Precision
from engine.training.quick_lora import make_lora_quick
from engine.training.steps import TrainerSetup

_PROBE_TOKENS = 64  # of each row that is tried
_LOSS_TOLERANCE = 0.02  # of the mean loss; bfloat16 moves it by a tenth of that


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
    """Attach the loss, make LoRA quick, put other kernels in where wanted, and choose how rows are batched.

    The choice is tried on a few rows: what our loss and our attention give must be what the model by itself gives.

    Raises:
        ModelError: If packing is wanted and the model cannot keep joined rows apart, or Liger's kernels change its loss.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    notes: list[str] = []
    model.eval()
    probe = [_cut(rows[index]) for index in (0, len(rows) // 2, 0)]
    autocast = _autocast(model, config, precision)
    expected = _own_losses(causal_lm, model, probe, pad_token_id, autocast)
    attach_loss(causal_lm)
    if not _agrees(_loss(model, pad(probe, pad_token_id), autocast), expected):
        attach_loss(causal_lm, through_logits=True)
        notes.append("This model changes its logits in a way of its own, so that all of them are computed.")
    notes.extend(
        _with_liger(causal_lm, config, placement, lambda: _loss(model, pad(probe, pad_token_id), autocast), expected)
    )
    own_attention = str(causal_lm.config._attn_implementation)
    flash = own_attention.startswith("flash_attention")
    facts, kind = read_attention(causal_lm), placement.torch_device.type
    batching = choose_batching(facts, own_attention, config, kind)
    if batching == "joined":
        if not flash:
            register_joined_attention()
            causal_lm.set_attn_implementation(JOINED_ATTENTION)
        agrees = _joins(model, probe, expected, flash=flash, autocast=autocast)
        batching = choose_batching(facts, own_attention, config, kind, trial_agrees=agrees)
        if batching == "padded":
            notes.append("This model does not keep joined rows apart, so that rows are padded.")
            causal_lm.set_attn_implementation(own_attention)
    joined = batching == "joined"
    if config.training.packing and not joined:
        raise ModelError(
            f"{type(causal_lm).__name__} cannot keep packed rows apart with {own_attention} attention.",
            "Switch packing off, or set attn_implementation to auto.",
        )
    try_rows = join(probe, flash=flash) if joined else pad(probe, pad_token_id)
    notes.extend(_compiled(model, config, placement, try_rows, autocast))
    settings = PlanSettings(
        seed=config.training.seed,
        per_device_train_batch_size=config.training.per_device_train_batch_size,
        gradient_accumulation_steps=config.training.gradient_accumulation_steps,
        max_length=config.training.max_length,
        packing=config.training.packing,
        batching=batching,
        train_sampling_strategy=config.training.train_sampling_strategy,
        world_size=placement.companions.world_size,
        rank=placement.companions.rank,
    )
    name = own_attention if not joined or flash else f"{own_attention}, row by row"
    makes_ahead = placement.torch_device.type != "cpu"
    return Assembly(TrainerSetup(settings, pad_token_id, flash, autocast, makes_ahead), name, tuple(notes))


def _autocast(model: Any, config: RunConfig, precision: Precision) -> torch.dtype | None:
    """Make LoRA quick; whatever trains beside it is held in float32 and must be cast for each product."""
    quick = make_lora_quick(model) if config.adapter.method == "lora" else 0
    if precision.compute is torch.float32:
        return None
    inside = sum(p.requires_grad for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name)
    trained = sum(p.requires_grad for p in model.parameters())
    return None if quick * 2 == inside == trained else precision.compute


def _with_liger(
    causal_lm: Any, config: RunConfig, placement: Placement, loss: Callable[[], float], expected: float
) -> list[str]:
    """Put Liger's kernels in where wanted; returns what must be said."""
    refused = use_liger_kernels(causal_lm, config, placement)
    if refused is not None:
        return [refused]
    if config.training.use_liger_kernel and not _agrees(loss(), expected):
        raise ModelError(
            f"Liger's kernels change the loss of {type(causal_lm).__name__}.", "Switch training.use_liger_kernel off."
        )
    return []


def _compiled(
    model: Any, config: RunConfig, placement: Placement, probe: PassTensors, autocast: torch.dtype | None
) -> list[str]:
    """Compile the layers where wanted, and try them forward and backward; returns what must be said."""
    refused = why_not_compiled(config, placement)
    if refused is not None:
        return [refused]
    if not config.training.torch_compile:
        return []
    before = _loss(model, probe, autocast)
    compile_layers(model)
    one = probe.to(_device(model))
    try:
        with _casting(one, autocast):
            loss = model(**one.inputs, trained_tokens=one.trained)
        loss.backward()
        works = _agrees(float(loss.detach()), before)
    except Exception:  # compilers fail as anything
        works = False
    model.zero_grad(set_to_none=True)
    if works:
        return []
    leave_uncompiled(model)
    return [f"torch.compile does not get along with {type(model).__name__} here, so that nothing is compiled."]


@dataclass(frozen=True)
class _CutRow:
    input_ids: list[int]
    labels: list[int]


def _cut(row: TokenRow) -> _CutRow:
    """The beginning of a row, all of it learned, so that every position is compared."""
    ids = row.input_ids[:_PROBE_TOKENS]
    return _CutRow(ids, list(ids))


def _own_losses(
    causal_lm: Any, model: Any, rows: Sequence[_CutRow], pad_token_id: int, autocast: torch.dtype | None
) -> float:
    """Summed loss of the rows by the model's own logits, each row by itself."""
    total = 0.0
    for row in rows:
        one = pad([row], pad_token_id).to(_device(causal_lm))
        with torch.no_grad(), _casting(one, autocast):
            logits = model(**one.inputs).logits
        flat = logits.reshape(-1, logits.shape[-1])[one.trained.positions].float()
        total += float(functional.cross_entropy(flat, one.trained.targets, reduction="sum"))
    return total


def _loss(model: Any, one: PassTensors, autocast: torch.dtype | None) -> float:
    one = one.to(_device(model))
    with torch.no_grad(), _casting(one, autocast):
        return float(model(**one.inputs, trained_tokens=one.trained))


def _joins(model: Any, rows: Sequence[_CutRow], expected: float, *, flash: bool, autocast: torch.dtype | None) -> bool:
    """Whether joined rows have the losses of separate ones. A row stands twice: seen again, it would be easy."""
    try:
        return _agrees(_loss(model, join(rows, flash=flash), autocast), expected)
    except (UnsupportedAttentionError, TypeError, ValueError, RuntimeError):
        return False


def _agrees(got: float, expected: float) -> bool:
    return abs(got - expected) <= _LOSS_TOLERANCE * abs(expected)


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


def _casting(one: PassTensors, autocast: torch.dtype | None) -> torch.autocast:
    device = one.trained.targets.device.type
    return torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None)

"""Choose how rows go through a given model: joined or padded, by which attention, and how many passes as one.

A pass of few tokens leaves a GPU idle between its kernels, so accumulation costs time and saves memory. Losses are
averaged over the terms of the whole step, so merged passes change nothing but rounding and the draws of dropout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import AttentionInterface

from loratory.engine.config.optimizations import LEFT_OUT, is_wanted
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.errors import EngineError
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.architecture import read_attention
from loratory.engine.memory.compare import with_changes
from loratory.engine.memory.estimate import Estimator
from loratory.engine.models.batching import (
    VARLEN_ATTENTION,
    AttentionFacts,
    Batching,
    choose_batching,
    needs_mask,
    takes_varlen_attention,
)
from loratory.engine.models.shape import ModelShape
from loratory.engine.training.batching.batches import join, pad
from loratory.engine.training.batching.probe import Probe
from loratory.engine.training.image_parts import language_model_of
from loratory.engine.training.ops.attention import JOINED_ATTENTION, joined_attention
from loratory.engine.training.ops.gpu_attention import (
    UNMASKED_ATTENTION,
    find_varlen_attn,
    unmasked_attention,
    varlen_attention,
)
from loratory.engine.training.ops.loss import causal_lm_of
from loratory.engine.training.placement import Placement


@dataclass(frozen=True)
class RowAttention:
    """How rows become batches and go through attention; the model has that attention."""

    batching: Batching
    name: str  # for the person
    flash: bool = False  # joined rows are described as flash attention takes them
    masked: bool = False  # padded rows come with a padding mask
    notes: tuple[str, ...] = ()
    why_not: dict[str, str] = field(default_factory=dict)  # an optimization is used, as in `Assembly.optimizations`


def choose_row_attention(
    probe: Probe, config: RunConfig, placement: Placement, expected: float, *, has_images: bool = False
) -> RowAttention:
    """Try the attentions that suit model and device on a few rows, the fastest first; `expected` is the model's own loss."""
    causal_lm = causal_lm_of(probe.model)
    language_model = language_model_of(causal_lm)
    own, kind = str(language_model.config._attn_implementation), placement.torch_device.type
    if has_images:
        return RowAttention("padded", own, masked=True, why_not=dict.fromkeys(_OF_ROWS, "rows have images"))
    facts = read_attention(causal_lm)
    notes: list[str] = []
    no_varlen = _why_no_varlen(facts, own, config, placement)
    separate = None
    for attention in (own,) if no_varlen else (VARLEN_ATTENTION, own):
        if choose_batching(facts, attention, config, kind) == "padded":
            continue
        separate = probe.separate_attention() if separate is None else separate
        flash = attention == VARLEN_ATTENTION or attention.startswith("flash_attention")
        _use(language_model, attention if flash else JOINED_ATTENTION)
        if probe.keeps_rows_separate(expected, separate, partial(join, flash=flash)):
            name = attention if attention != VARLEN_ATTENTION else "varlen_attn"
            why_not = {"varlen_attention": no_varlen, "unmasked_rows": "rows are joined"}
            return RowAttention("joined", name if flash else f"{own}, row by row", flash, False, tuple(notes), why_not)
        language_model.set_attn_implementation(own)
        if attention == VARLEN_ATTENTION:
            no_varlen = "the model's losses or attention differ"
        else:
            notes.append("This model does not keep joined rows apart, so its rows are padded.")
    no_varlen = no_varlen or "rows of this run are padded"
    mask = _why_masked(probe, facts, own, config, expected)
    name = own if mask else f"{own}, without a mask"
    why_not = {"varlen_attention": no_varlen, "unmasked_rows": mask}
    return RowAttention("padded", name, masked=bool(mask), notes=tuple(notes), why_not=why_not)


def _use(language_model: Any, attention: str) -> None:
    AttentionInterface.register(JOINED_ATTENTION, joined_attention)
    AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)
    AttentionInterface.register(UNMASKED_ATTENTION, unmasked_attention)
    if str(language_model.config._attn_implementation) != attention:
        language_model.set_attn_implementation(attention)


_OF_ROWS = ("varlen_attention", "unmasked_rows")


def _why_no_varlen(facts: AttentionFacts, own: str, config: RunConfig, placement: Placement) -> str:
    if not is_wanted("varlen_attention"):
        return LEFT_OUT
    if own.startswith("flash_attention"):
        return f"{own} joins rows"
    runs = all(takes_varlen_attention(facts, own, config, device) for device in placement.devices)
    if not runs or find_varlen_attn() is None:
        return "needs CUDA since Ampere, 16 bits, sdpa attention and a newer PyTorch"
    return ""


def _why_masked(probe: Probe, facts: AttentionFacts, own: str, config: RunConfig, expected: float) -> str:
    """Return why padded rows keep their mask; "" where they go through the model without one from now on."""
    if not is_wanted("unmasked_rows"):
        return LEFT_OUT
    if needs_mask(facts, own, config):
        return "the model, its attention or virtual tokens need the mask"
    language_model = language_model_of(causal_lm_of(probe.model))
    separate = probe.separate_attention()
    _use(language_model, UNMASKED_ATTENTION)
    if probe.keeps_rows_separate(expected, separate, partial(pad, pad_token_id=probe.pad_token_id, masked=False)):
        return ""
    language_model.set_attn_implementation(own)
    return "the model's losses or attention differ"


_ROOM_SHARE = 0.85  # of what is free, which the bound of nine runs in ten must leave
_ENOUGH_TOKENS = 16_384  # in one pass; more keep no GPU busier


@dataclass(frozen=True)
class Merging:
    """How many passes are merged at most, and why not more than one; what the run is then expected to take."""

    merged: int = 1
    why_not: str = ""
    expected_bytes: int | None = None


def choose_merging(
    config: RunConfig, shape: ModelShape | None, device: Device, rows: RowLengths, checkpoint_merged: int | None = None
) -> Merging:
    """Choose the most passes whose estimate leaves room on a device, as it is before the model is loaded.

    Args:
        checkpoint_merged: The count that a resumed run began with, which it keeps where that fits at all.
    """
    training = config.training
    if not is_wanted("merged_passes"):
        return Merging(why_not=LEFT_OUT)
    if device.kind != "cuda":
        return Merging(why_not="a processor is as fast in several passes" if device.kind == "cpu" else "needs CUDA")
    if training.gradient_accumulation_steps == 1:
        return Merging(why_not="each step is one pass")
    if shape is None or config.run.spread_over > 1:
        return Merging(why_not="the estimate does not know how much room is left")
    longest = min(training.max_length, rows.longest)
    tokens = training.per_device_train_batch_size * rows.per_row * longest
    estimator = Estimator(shape, device, rows)
    for count in _counts(training.gradient_accumulation_steps, checkpoint_merged):
        if count > 1 and count != checkpoint_merged and count * tokens > _ENOUGH_TOKENS:
            continue
        changes = {
            "training.per_device_train_batch_size": training.per_device_train_batch_size * count,
            # Where a step keeps several passes, gradients of earlier ones wait.
            "training.gradient_accumulation_steps": max(2, math.ceil(training.gradient_accumulation_steps / count)),
        }
        try:
            need = estimator.need(with_changes(config, changes))
        except EngineError:
            return Merging(why_not="the estimate does not know this model")
        if need.needed_bytes <= (1.0 if count == checkpoint_merged else _ROOM_SHARE) * device.free_bytes:
            return Merging(count, "" if count > 1 else "no room", need.expected_bytes if count > 1 else None)
    return Merging(why_not="no room, or passes are large enough")


def _counts(accumulated: int, checkpoint_merged: int | None) -> list[int]:
    """Return what to try: the count of the checkpoint, then the parts of a step, the largest first."""
    if checkpoint_merged == 1:
        return [1]
    parts = [count for count in range(accumulated, 1, -1) if accumulated % count == 0]
    return [*([checkpoint_merged] if checkpoint_merged is not None else []), *parts]


def lengths_of(rows: Sequence[Any]) -> RowLengths:
    """Return the lengths of rows to train on, as the estimate takes them; every token counts as trained."""
    sequences: Any = getattr(rows, "sequences", rows)  # of pairs: chosen and rejected, one after the other
    lengths = tuple(sequences.lengths())
    return RowLengths(tokens=lengths, trained=lengths, count=len(rows), per_row=len(lengths) // len(rows))

"""Choose how rows go through attention in a given model: joined or padded, by which kernel, with a mask or without."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from engine.config.optimizations import LEFT_OUT, is_wanted
from engine.config.run import RunConfig
from engine.inspector.worker.architecture import read_attention
from engine.models.batching import (
    VARLEN_ATTENTION,
    AttentionFacts,
    Batching,
    choose_batching,
    needs_mask,
    takes_varlen_attention,
)
from engine.training.batching.batches import join, pad
from engine.training.batching.probe import Probe
from engine.training.ops.attention import JOINED_ATTENTION, register_joined_attention
from engine.training.ops.gpu_attention import UNMASKED_ATTENTION, register_gpu_attention, why_no_varlen_attention
from engine.training.ops.loss import causal_lm_of
from engine.training.placement import Placement


@dataclass(frozen=True)
class RowAttention:
    """How rows become batches and go through attention; the model has that attention."""

    batching: Batching
    name: str  # in words, for the person
    flash: bool = False  # joined rows are described as flash attention takes them
    masked: bool = False  # padded rows come with a padding mask
    notes: tuple[str, ...] = ()
    why_not: dict[str, str] = field(default_factory=dict)  # an optimization is used, as in `Assembly.optimizations`


def choose_row_attention(probe: Probe, config: RunConfig, placement: Placement, expected: float) -> RowAttention:
    """Try what suits model and device on a few rows, the fastest first; `expected` is their loss by the model alone."""
    causal_lm = causal_lm_of(probe.model)
    own, kind = str(causal_lm.config._attn_implementation), placement.torch_device.type
    facts = read_attention(causal_lm)
    notes: list[str] = []
    no_varlen = _why_no_varlen(probe, facts, own, config, placement)
    apart = None
    for attention in (own,) if no_varlen else (VARLEN_ATTENTION, own):
        if choose_batching(facts, attention, config, kind) == "padded":
            continue
        apart = probe.attention_apart() if apart is None else apart
        flash = attention == VARLEN_ATTENTION or attention.startswith("flash_attention")
        _use(causal_lm, attention if flash else JOINED_ATTENTION)
        if probe.keeps_apart(expected, apart, partial(join, flash=flash)):
            name = attention if attention != VARLEN_ATTENTION else "varlen_attn"
            why_not = {"varlen_attention": no_varlen, "unmasked_rows": "rows are joined"}
            return RowAttention("joined", name if flash else f"{own}, row by row", flash, False, tuple(notes), why_not)
        causal_lm.set_attn_implementation(own)
        if attention == VARLEN_ATTENTION:
            no_varlen = "the model's losses or attention differ"
        else:
            notes.append("This model does not keep joined rows apart, so its rows are padded.")
    no_varlen = no_varlen or "rows of this run are padded"
    mask = _why_masked(probe, facts, own, config, expected)
    name = own if mask else f"{own}, without a mask"
    why_not = {"varlen_attention": no_varlen, "unmasked_rows": mask}
    return RowAttention("padded", name, masked=bool(mask), notes=tuple(notes), why_not=why_not)


def _use(causal_lm: Any, attention: str) -> None:
    register_joined_attention()
    register_gpu_attention()
    if str(causal_lm.config._attn_implementation) != attention:
        causal_lm.set_attn_implementation(attention)


def _why_no_varlen(probe: Probe, facts: AttentionFacts, own: str, config: RunConfig, placement: Placement) -> str:
    if not is_wanted("varlen_attention"):
        return LEFT_OUT
    if own.startswith("flash_attention"):
        return f"{own} joins rows"
    if not all(
        takes_varlen_attention(facts, own, config, device) for device in placement.spread or (placement.device,)
    ):
        return "needs CUDA since Ampere, 16 bits, sdpa attention and a newer PyTorch"
    text = causal_lm_of(probe.model).config.get_text_config()
    queries = int(text.num_attention_heads)
    shared = getattr(text, "num_key_value_heads", None)
    dtype = probe.autocast or next(p.dtype for p in probe.model.parameters() if p.is_floating_point())
    heads = (queries, shared if isinstance(shared, int) else queries, facts.head_dim)
    return why_no_varlen_attention(placement.torch_device, dtype, heads)


def _why_masked(probe: Probe, facts: AttentionFacts, own: str, config: RunConfig, expected: float) -> str:
    """Return why padded rows keep their mask; "" where they go through the model without one from now on."""
    if not is_wanted("unmasked_rows"):
        return LEFT_OUT
    if needs_mask(facts, own, config):
        return "the model, its attention or virtual tokens need the mask"
    causal_lm = causal_lm_of(probe.model)
    apart = probe.attention_apart()
    _use(causal_lm, UNMASKED_ATTENTION)
    if probe.keeps_apart(expected, apart, partial(pad, pad_token_id=probe.pad_token_id, masked=False)):
        return ""
    causal_lm.set_attn_implementation(own)
    return "the model's losses or attention differ"

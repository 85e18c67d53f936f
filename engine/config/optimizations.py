"""What makes training and answers faster without changing them: one table, which trainer, estimate and benchmarks share.

Each applies by itself where it can. `LORATORY_WITHOUT` names those to leave out, separated by commas, to measure what one is
worth or to look for the cause of a difference.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import ConfigError, Problem

VARIABLE = "LORATORY_WITHOUT"
LEFT_OUT = f"left out by {VARIABLE}"  # why one is not used, as events and the log say it


@dataclass(frozen=True)
class Optimization:
    """One optimization. `name` is what `LORATORY_WITHOUT` takes."""

    name: str
    what: str  # it does, in place of what
    applies: str  # where
    of_training: bool = True  # else of answers


OPTIMIZATIONS: Mapping[str, Optimization] = {
    one.name: one
    for one in (
        Optimization(
            "unmasked_rows",
            "Padded rows go through attention without a padding mask, which no trained token would see.",
            "Causal models whose losses stay the same, without virtual tokens.",
        ),
        Optimization(
            "varlen_attention",
            "Rows are joined, and one kernel attends within each (torch.nn.attention.varlen).",
            "CUDA from Ampere on, at 16 bits, with a PyTorch whose kernel takes windows and shared heads.",
        ),
        Optimization(
            "shared_prompts",
            "Both answers of a pair follow one prompt, which goes through the model once.",
            "Joined pairs on a processor.",
        ),
        Optimization(
            "fused_loss",
            "One Triton kernel turns logits into losses and gradients in place.",
            "CUDA with triton, a frozen linear head.",
        ),
        Optimization(
            "liger_kernels",
            "Liger's norms, rotary embedding and gated layers.",
            "CUDA with liger-kernel, where loss and gradients stay the same.",
        ),
        Optimization(
            "fused_norms",
            "PyTorch's kernel for RMSNorm.",
            "CUDA, where Liger's is not used and loss and gradients stay the same.",
        ),
        Optimization(
            "fused_lora",
            "Frozen layer and LoRA branch are one autograd function.",
            "Plain LoRA on linear layers at 16 or 32 bits, or in 4 bits.",
        ),
        Optimization(
            "shared_inputs",
            "Queries, keys and values, gate and up: LoRA layers with one input are one autograd function.",
            "Where fused_lora applies, and a first pass gives them the same tensor.",
        ),
        Optimization(
            "step_copies",
            "LoRA's matrices are cast once for all passes of a step.",
            "Where fused_lora applies, without sharding and gradient checkpointing.",
        ),
        Optimization(
            "merged_passes",
            "Passes of gradient accumulation go through the model as one.",
            "CUDA, as far as the estimate finds room on the device when the run begins.",
        ),
        Optimization(
            "timed_logging",
            "Steps in quick succession are logged together, up to four times a second.",
            "CUDA, where a logged step waits for the GPU.",
        ),
        Optimization(
            "weight_buffer",
            "4-bit weights are written out into one buffer.",
            "Where fused_lora applies, on CUDA without gradient checkpointing.",
        ),
        Optimization(
            "static_cache",
            "Each token of an answer repeats one CUDA graph, with keys and values in memory that stays where it is.",
            "CUDA, models with attention in every layer, adapters without virtual tokens, not int8.",
            of_training=False,
        ),
    )
}
TRAINING_OPTIMIZATIONS = tuple(one.name for one in OPTIMIZATIONS.values() if one.of_training)


def is_wanted(name: str) -> bool:
    """Whether an optimization may be used; `LORATORY_WITHOUT` does not name it.

    Raises:
        ConfigError: If the variable names something that is not in the table.
    """
    assert name in OPTIMIZATIONS, name
    left_out = {part.strip() for part in os.environ.get(VARIABLE, "").split(",") if part.strip()}
    if unknown := sorted(left_out - OPTIMIZATIONS.keys()):
        names = ", ".join(OPTIMIZATIONS)
        raise ConfigError([Problem(VARIABLE, f"{', '.join(unknown)} is not one of {names}.")])
    return name not in left_out

"""What makes training and answers faster without changing them, for trainer, estimate and benchmarks.

Each applies by itself where it can. `LORATORY_WITHOUT` names those to leave out, separated by commas, to measure what one is
worth or to look for the cause of a difference.
"""

import os

from loratory.engine.errors import ConfigError, Problem

VARIABLE = "LORATORY_WITHOUT"
LEFT_OUT = f"left out by {VARIABLE}"  # why one is not used, as events and the log say it

TRAINING_OPTIMIZATIONS = (
    # Padded rows go through attention without a padding mask: causal models with the same losses, no virtual tokens.
    "unmasked_rows",
    # Rows are joined, and one kernel (torch.nn.attention.varlen) attends within each: CUDA from Ampere on, at 16 bits.
    "varlen_attention",
    # Both answers of a pair follow one prompt, which goes through the model once: joined pairs on a processor.
    "shared_prompts",
    # One Triton kernel turns logits into losses and gradients in place: CUDA with triton, a frozen linear head.
    "fused_loss",
    # Liger's norms, rotary embedding and gated layers: CUDA with liger-kernel, where loss and gradients stay the same.
    "liger_kernels",
    # PyTorch's kernel for RMSNorm: CUDA, where Liger's is not used and loss and gradients stay the same.
    "fused_norms",
    # Frozen layer and LoRA branch are one autograd function: plain LoRA on linear layers at 16 or 32 bits, or in 4 bits.
    "fused_lora",
    # Queries, keys and values, gate and up: LoRA layers with one input are one autograd function, with fused_lora.
    "shared_inputs",
    # Passes of gradient accumulation go through the model as one: CUDA, as far as the estimate finds room.
    "merged_passes",
    # Steps in quick succession are logged together, up to four times a second: CUDA, where logging waits for the GPU.
    "timed_logging",
)
# Each token of an answer repeats one CUDA graph, with keys and values in memory that stays where it is: models with
# attention in every layer, adapters without virtual tokens, not int8.
OPTIMIZATIONS = (*TRAINING_OPTIMIZATIONS, "static_cache")


def is_wanted(name: str) -> bool:
    """Return whether an optimization may be used; `LORATORY_WITHOUT` does not name it.

    Raises:
        ConfigError: If the variable names something that is not in the table.
    """
    assert name in OPTIMIZATIONS, name
    left_out = {part.strip() for part in os.environ.get(VARIABLE, "").split(",") if part.strip()}
    if unknown := sorted(left_out.difference(OPTIMIZATIONS)):
        names = ", ".join(OPTIMIZATIONS)
        raise ConfigError([Problem(VARIABLE, f"{', '.join(unknown)} is not one of {names}.")])
    return name not in left_out

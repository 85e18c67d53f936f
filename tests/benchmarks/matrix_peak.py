"""What this processor can multiply, and what a step of LoRA on the demo model has to."""

import time

import torch

# SmolLM2-135M: 30 layers, hidden size 576, key-value size 192, feed-forward size 1536, vocabulary 49,152.
_FROZEN = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
_ADAPTER = 4_884_480  # rank 16 on all linear layers

# Forward and back to the inputs through every frozen layer, 2 operations for each weight; through the adapter, whose
# weights need a gradient as well, a third time. Scores of the attention are left out: rows are short.
FLOPS_PER_TOKEN = 2.0 * (2 * _FROZEN + 3 * _ADAPTER)
HEAD_FLOPS_PER_TRAINED_TOKEN = 2.0 * 2 * 49152 * 576


def measured_peak_flops(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on all cores: the best of many."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    best = 0.0
    for _ in range(40):
        began = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best

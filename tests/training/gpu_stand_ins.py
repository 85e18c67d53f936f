"""Kernels that only a GPU has, written with PyTorch's operations: what is built around them is tried on a processor."""

import sys
import types
from typing import Any

import torch
from torch.nn import functional

from loratory.engine.training import kernels
from loratory.engine.training.batching import choose
from loratory.engine.training.ops import gpu_attention
from loratory.engine.training.ops.loss import LogitTransform


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """`torch.nn.attention.varlen.varlen_attn`, row by row: (tokens, heads, head_dim)."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    rows = list(zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False))
    assert max(end - start for start, end in rows) == max_q == max_k
    left, right = window_size
    outputs = []
    for start, end in rows:
        positions = torch.arange(end - start)
        distance = positions[:, None] - positions[None, :]
        visible = torch.ones_like(distance, dtype=torch.bool)
        visible &= distance <= left if left >= 0 else visible
        visible &= -distance <= right if right >= 0 else visible
        parts = (part[start:end].transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        row = functional.scaled_dot_product_attention(*parts, attn_mask=visible, scale=scale, enable_gqa=enable_gqa)
        outputs.append(row[0].transpose(0, 1))
    return torch.cat(outputs)


class CrossEntropy:
    """As `loratory.engine.training.ops.triton_loss` has it."""

    @staticmethod
    def apply(logits, targets, scale, cap):
        return functional.cross_entropy(
            LogitTransform(scale, cap).apply(logits.float()), targets, reduction="none", ignore_index=-100
        )


def losses_and_gradient_(logits, targets, scale, cap, gradient_sum):
    """As `loratory.engine.training.ops.triton_loss` has it."""
    with torch.enable_grad():
        again = logits.detach().clone().requires_grad_()
        losses = CrossEntropy.apply(again, targets, scale, cap)
        (gradient,) = torch.autograd.grad(losses.sum(), again)
    logits.copy_(gradient)
    return losses.detach(), torch.ones_like(losses)


def triton_loss() -> Any:
    """Build a module that replaces `loratory.engine.training.ops.triton_loss`."""
    module: Any = types.ModuleType("loratory.engine.training.ops.triton_loss")
    module.CrossEntropy = CrossEntropy
    module.losses_and_gradient_ = losses_and_gradient_
    module.losses_of = lambda *arguments: (CrossEntropy.apply(*arguments), None)
    return module


def use_gpu_paths(monkeypatch, *, joins: bool = True) -> None:
    """Let trainings on this processor use the kernels of a GPU; `joins` as on one since Ampere."""
    module = triton_loss()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("loratory.engine.training.ops.triton_loss", module, raising=False)
    monkeypatch.setattr(kernels, "_runs_triton", lambda _device: True)
    monkeypatch.setattr(kernels, "_is_installed", lambda package: package == "triton")
    monkeypatch.setattr(gpu_attention, "find_varlen_attn", lambda: varlen_attn)
    monkeypatch.setattr(choose, "find_varlen_attn", lambda: varlen_attn)
    monkeypatch.setattr(choose, "takes_varlen_attention", lambda _facts, attention, *_: joins and attention == "sdpa")
    if not joins:
        monkeypatch.setattr(choose, "choose_batching", lambda *_, **__: "padded")

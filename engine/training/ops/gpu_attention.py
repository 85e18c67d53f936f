"""Attention without a mask of all positions against all: joined rows in one kernel, and padded rows as plain causal ones.

transformers builds a mask from `attention_mask`, or reads positions to find out whether it needs one, which waits for the GPU;
it does neither for attention functions that are registered without a mask function. These two have none.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from loratory.engine.training.ops.attention import JoinedRows, joined_attention, require_plain

UNMASKED_ATTENTION = "loratory_unmasked"  # its name among transformers' attention functions

_ARGUMENTS = {"scale", "window_size", "enable_gqa"}


def find_varlen_attn() -> Callable[..., torch.Tensor] | None:
    """Return PyTorch's attention over joined rows, where it takes a scale, a window and heads that share keys."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if inspect.signature(varlen_attn).parameters.keys() >= _ARGUMENTS else None


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, head_dim)
    key: torch.Tensor,  # (1, key-value heads, tokens, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each of the joined rows, which are described as for flash attention.

    Returns:
        The outputs, (1, tokens, heads, head_dim), and None in place of the probabilities.

    Raises:
        UnsupportedAttentionError: If the model needs anything but plain causal or sliding attention.
    """
    attend = find_varlen_attn()
    unsupported_options = {
        "a mask": attention_mask is not None,
        "rows that are not joined": cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1,
        "values of another size": value.shape[-1] != query.shape[-1],
        "another PyTorch": attend is None,
    }
    require_plain(module, options, unsupported_options)
    assert attend is not None
    assert cu_seq_lens_q is not None
    assert max_length_q is not None
    if dropout > 0:  # the kernel has none; models that are known to drop out never come here
        rows = JoinedRows(tuple(cu_seq_lens_q.diff().tolist()))
        return joined_attention(module, query, key, value, None, dropout, scaling, sliding_window, rows)
    if torch.is_autocast_enabled(query.device.type):  # it does not know this kernel
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # The kernel counts keys before a query, transformers those that it sees, its own among them.
    before = -1 if sliding_window is None or sliding_window >= max_length_q else sliding_window - 1
    output = attend(
        *(states[0].transpose(0, 1) for states in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(before, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.unsqueeze(0), None


def unmasked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (rows, heads, tokens, head_dim)
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within rows that are padded at their end, so their tokens never see padding.

    Raises:
        UnsupportedAttentionError: If the model needs anything but plain causal or sliding attention.
    """
    tokens = query.shape[2]
    require_plain(module, options, {"a mask": attention_mask is not None, "a cache": key.shape[2] != tokens})
    mask = None
    if sliding_window is not None and sliding_window < tokens:
        mask = _window_mask(tokens, sliding_window, query.device)
    output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **options)
    return output, None


@functools.lru_cache(maxsize=1)  # for all layers of a pass
def _window_mask(tokens: int, window: int, device: torch.device) -> torch.Tensor:
    positions = torch.arange(tokens, device=device)
    distance = positions[:, None] - positions[None, :]
    return ((distance >= 0) & (distance < window))[None, None]

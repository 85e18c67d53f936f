"""Attention for concatenated rows without padding: each row sees itself and nothing else.

transformers keeps packed rows apart with a mask of all positions against all, and PyTorch's attention kernel for
the CPU is slow in its backward pass. Here every row is a matrix product of its own, in tiles of queries, so the work
grows with the rows and not with the sequence that they are in.
"""

import functools
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loratory.engine.config.rules import QUERY_TILE

JOINED_ATTENTION = "loratory_joined"  # its name among transformers' attention functions

FLASH_CAPABILITY = (8, 0)  # Ampere; flash_attn's README, "NVIDIA CUDA Support", and PyTorch's own kernel

_PADDING = 16  # sequences that differ by fewer tokens are as many heads of one product

# Options that other attention functions support and this one does not; a model that uses one is trained with padding.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask")


class UnsupportedAttentionError(Exception):
    """The model's attention needs something that joined rows do not support."""


@dataclass(frozen=True)
class SharedPrefix:
    """Sequences in one row with the same beginning: the first one, then what each other one does not share with it."""

    shared: int  # tokens that all begin with
    starts: tuple[int, ...]  # where the rests of the second one and later ones begin in the row


@dataclass(frozen=True)
class JoinedRows:
    """Lengths in tokens of the rows in one sequence."""

    lengths: tuple[int, ...]
    prefixes: tuple[SharedPrefix | None, ...] = ()  # of the first rows; the others hold one sequence each


@dataclass(frozen=True)
class _VisibleKeys:
    """Which earlier tokens of its row a token sees: those of its own sequence, within a window."""

    window: int | None = None
    pair: SharedPrefix | None = None  # two sequences in the row; more than two are taken apart

    def distances(self, queries: slice, keys: slice, device: torch.device) -> torch.Tensor:
        """Return how far keys are before queries in their sequences, (queries, keys); slices of the row."""
        positions = torch.arange(queries.stop, device=device)
        if self.pair is not None:
            positions[self.pair.starts[0] :] -= self.pair.starts[0] - self.pair.shared
        return positions[queries, None] - positions[None, keys]

    def hide(self, scores: torch.Tensor, first_query: int, value: float | bool) -> None:
        """Set scores of the second sequence for keys of the first alone, (…, queries, all keys up to the last query)."""
        if self.pair is not None and self.pair.starts[0] < scores.shape[-1]:
            start = self.pair.starts[0]
            scores[..., max(0, start - first_query) :, self.pair.shared : start] = value


def copy_shared_heads(compute: torch.dtype, cuda_indexes: Sequence[int]) -> None:
    """Let transformers' sdpa serve grouped-query models with a fused kernel on these devices, now and for later models.

    transformers hands rows without a mask to PyTorch with fewer key-value heads than query heads. Flash attention alone takes
    that: at 16 bits, on GPUs since Ampere. Elsewhere PyTorch would write out the scores of all heads in float32.

    Source: `use_gqa_in_sdpa`, transformers/integrations/sdpa_attention.py; `can_use_mem_efficient_attention`,
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """
    needed = not all(_takes_shared_heads(torch.device("cuda", index), compute) for index in cuda_indexes)
    AttentionInterface.register("sdpa", sdpa_with_copied_heads if needed else sdpa_attention_forward)


def sdpa_with_copied_heads(
    module: torch.nn.Module,
    query: torch.Tensor,  # (batch, heads, tokens, head_dim)
    key: torch.Tensor,  # (batch, key-value heads, tokens, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' sdpa does, with a key-value head for each query head where there is no mask.

    One new token shares the heads as they are: the queries of a group become its rows, and a long cache is not copied.
    """
    batch, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    unsupported_options = any(options.get(name) is not None for name in ("position_bias", "softcap"))
    if groups == 1 or attention_mask is not None or unsupported_options:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    if tokens == 1:
        packed, dropout = query.reshape(batch, key.shape[1], groups, size), options.get("dropout", 0.0)
        packed = functional.scaled_dot_product_attention(
            packed, key, value, dropout_p=dropout, scale=options.get("scaling")
        )
        return packed.reshape(batch, 1, heads, value.shape[-1]), None
    stand_in = types.SimpleNamespace(
        is_causal=bool(getattr(module, "is_causal", True))
    )  # a module without shared heads
    output, _ = sdpa_attention_forward(
        stand_in, query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), None, **options
    )
    return output, None


def _takes_shared_heads(device: torch.device, dtype: torch.dtype, *, masked: bool = False) -> bool:
    """Return whether PyTorch's attention has a fused kernel for shared key-value heads; its flash kernel on CUDA."""
    if device.type != "cuda":
        return True  # as good as it gets
    has_flash = torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    return has_flash and dtype in (torch.float16, torch.bfloat16) and not masked


def joined_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, head_dim)
    key: torch.Tensor,  # (1, key-value heads, tokens, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    joined_rows: JoinedRows | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each of `joined_rows`, in the form that transformers' models call.

    Returns:
        The outputs, (1, tokens, heads, head_dim), and None in place of the probabilities.

    Raises:
        UnsupportedAttentionError: If the model needs anything but plain causal or sliding attention.
    """
    has_mask = joined_rows is None or attention_mask is not None or query.shape[0] != 1
    require_plain(module, options, {"a mask": has_mask})
    assert joined_rows is not None
    if torch.is_autocast_enabled(query.device.type):  # it cannot reach into the tiles
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _attend_tiled if query.device.type == "cpu" and not dropout else _attend_fused
    rows = zip(*(states[0].split(joined_rows.lengths, dim=1) for states in (query, key, value)), strict=True)
    with torch.autocast(query.device.type, enabled=False):
        outputs = [
            part
            for states, prefix in itertools.zip_longest(rows, joined_rows.prefixes)
            for part in _attend_row(
                functools.partial(attend, scale=scale, dropout=dropout), states, prefix, sliding_window
            )
        ]
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return joined.transpose(0, 1).unsqueeze(0).contiguous(), None


def _attend_row(
    attend: Callable[..., torch.Tensor],
    states: tuple[torch.Tensor, ...],
    prefix: SharedPrefix | None,
    window: int | None,
) -> Iterator[torch.Tensor]:
    """Yield the outputs of the sequences of a row, (heads, tokens, head_dim).

    The scores of a pair in one product are fewer copies of keys; those of many sequences would mostly be hidden. So these
    are as many heads of one product, each with the shared keys; padding comes after all that a token sees.
    """
    if prefix is None or len(prefix.starts) < 2:
        yield attend(*states, visible=_VisibleKeys(window, prefix if prefix is not None and prefix.starts else None))
        return
    ends = (*prefix.starts, states[0].shape[1])
    lengths = [end - start for start, end in itertools.pairwise((0, *ends))]
    # Split at once, whose gradient is one copy.
    first, *rests = zip(*(each.split(lengths, dim=1) for each in states), strict=True)
    yield attend(*first, visible=_VisibleKeys(window))
    outputs = {}
    by_length = sorted(enumerate(lengths[1:]), key=lambda item: item[1])
    for width, group in itertools.groupby(by_length, key=lambda item: -(-item[1] // _PADDING)):
        sizes = dict(group if width else ())
        if not sizes:
            continue  # no longer than what is shared
        q, k, v = (_stack(parts, max(sizes.values())) for parts in zip(*(rests[index] for index in sizes), strict=True))
        k, v = (
            torch.cat([each[:, : prefix.shared].expand(len(sizes), -1, -1, -1), rest], dim=2)
            for each, rest in zip(first[1:], (k, v), strict=True)
        )
        output = attend(*(each.flatten(0, 1) for each in (q, k, v)), visible=_VisibleKeys(window)).view(q.shape)
        for (index, size), part in zip(sizes.items(), output.unbind(), strict=True):
            outputs[index] = part if size == part.shape[1] else part[:, :size]
    yield from (outputs[index] for index in sorted(outputs))


def _stack(parts: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Return (parts, heads, tokens, head_dim), the shorter ones padded at their ends."""
    pads = (length - part.shape[1] for part in parts)
    return torch.stack(
        [functional.pad(part, (0, 0, 0, pad)) if pad else part for part, pad in zip(parts, pads, strict=True)]
    )


def require_plain(module: torch.nn.Module, options: Mapping[str, Any], conditions: Mapping[str, bool]) -> None:
    """Refuse options that our attention functions do not support; `conditions` names further ones, and whether they hold.

    Raises:
        UnsupportedAttentionError: If the call has any of them.
    """
    unsupported_options = [name for name in _UNSUPPORTED if options.get(name) is not None]
    unsupported_options += [name for name, holds in conditions.items() if holds]
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        unsupported_options.append("attention to later tokens")
    if unsupported_options:
        raise UnsupportedAttentionError(", ".join(unsupported_options))


def _attend_fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float, visible: _VisibleKeys
) -> torch.Tensor:
    length, before, window = k.shape[1], k.shape[1] - q.shape[1], visible.window  # `before` the first query
    mask = None
    if before or visible.pair is not None or (window is not None and window < length):
        mask = torch.ones(q.shape[1], length, dtype=torch.bool, device=q.device).tril_(before)
        if window is not None:
            mask &= visible.distances(slice(before, length), slice(0, length), q.device) < window
        visible.hide(mask, 0, value=False)
    groups = q.shape[0] // k.shape[0]
    if groups > 1 and not _takes_shared_heads(q.device, q.dtype, masked=mask is not None):
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    batched, is_shared = (q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)), q.shape[0] != k.shape[0]
    return functional.scaled_dot_product_attention(
        *batched, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=is_shared
    )[0]


def _attend_tiled(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float, visible: _VisibleKeys
) -> torch.Tensor:
    assert not dropout
    return _TiledAttention.apply(q, k, v, scale, visible)


class _TiledAttention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(scale · q kᵀ) v for one sequence; scores in float32 as in fused kernels, everything else in the inputs' dtype.

    Queries are the last tokens of the sequence, mostly all of them.

    A row that fits into one tile keeps its probabilities for the backward pass. A longer one computes them again, so
    memory never grows with the square of the length (Dao et al. 2022, section 3.1, arXiv:2205.14135).
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, visible: _VisibleKeys
    ) -> torch.Tensor:
        heads, length, size = q.shape
        shared = k.shape[0]  # key-value heads; the query heads that share one are computed as more of its queries
        q4 = q.reshape(shared, heads // shared, length, size)
        k32 = k.float()
        output = q.new_empty(shared, heads // shared, length, size)
        probabilities = None
        tiles = _tiles(length, k.shape[1], visible)
        for tile in tiles:
            probabilities = _probabilities(q4, k32, tile, scale, visible)
            output[:, :, tile.start : tile.end] = torch.bmm(probabilities, v[:, tile.keys]).view(
                shared, -1, tile.end - tile.start, size
            )
        ctx.save_for_backward(q, k, v, probabilities if tiles[-1].sees_all else None)
        ctx.scale, ctx.visible = scale, visible
        return output.view(heads, length, size)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, probabilities = ctx.saved_tensors
        heads, length, size = q.shape
        shared = k.shape[0]
        q4 = q.reshape(shared, heads // shared, length, size)
        grad4 = grad.reshape(shared, heads // shared, length, size)
        k32 = k.float() if probabilities is None else k
        dq = q.new_empty(shared, heads // shared, length, size)
        dk = dv = None
        if probabilities is None:  # several tiles add up
            dk = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
            dv = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
        for tile in _tiles(length, k.shape[1], ctx.visible):
            p = _probabilities(q4, k32, tile, ctx.scale, ctx.visible) if probabilities is None else probabilities
            rows, keys = slice(tile.start, tile.end), tile.keys
            queries = q4[:, :, rows].reshape(shared, -1, size)
            out = grad4[:, :, rows].reshape(shared, -1, size)
            dp = torch.bmm(out, v[:, keys].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, :, rows] = torch.bmm(ds, k[:, keys]).mul_(ctx.scale).view(shared, -1, tile.end - tile.start, size)
            dk_tile = torch.bmm(ds.transpose(1, 2), queries).mul_(ctx.scale)
            dv_tile = torch.bmm(p.transpose(1, 2), out)
            if dk is None or dv is None:
                return dq.view(heads, length, size), dk_tile, dv_tile, None, None
            dk[:, keys] += dk_tile
            dv[:, keys] += dv_tile
        assert dk is not None
        assert dv is not None
        return dq.view(heads, length, size), dk.to(k.dtype), dv.to(v.dtype), None, None


@dataclass(frozen=True)
class _Tile:
    start: int  # first query
    end: int  # after the last query
    before: int  # keys before the first query of the sequence
    first: int  # first key that any of them sees

    @property
    def keys(self) -> slice:
        """The keys that any of its queries sees."""
        return slice(self.first, self.end + self.before)

    @property
    def sees_all(self) -> bool:
        """Whether it is the only tile of its sequence, and sees every key."""
        return self.start == self.first == 0


def _tiles(queries: int, keys: int, visible: _VisibleKeys) -> list[_Tile]:
    # What two sequences share is near to both.
    window = keys if visible.window is None or visible.pair is not None else visible.window
    before = keys - queries
    return [
        _Tile(start, min(start + QUERY_TILE, queries), before, max(0, start + before - window + 1))
        for start in range(0, queries, QUERY_TILE)
    ]


def _probabilities(
    q4: torch.Tensor, k32: torch.Tensor, tile: _Tile, scale: float, visible: _VisibleKeys
) -> torch.Tensor:
    """Return probabilities of one tile, (key-value heads, heads that share one × queries, keys), in the dtype of `q4`."""
    shared, group, _, size = q4.shape
    queries = q4[:, :, tile.start : tile.end].reshape(shared, -1, size).float()
    keys = k32[:, tile.keys].transpose(1, 2)
    scores = torch.baddbmm(queries.new_empty(1, 1, 1), queries, keys, beta=0, alpha=scale)
    count, key_count = tile.end - tile.start, keys.shape[2]
    by_head = scores.view(shared, group, count, key_count)
    by_head[..., key_count - count :].add_(_later_forbidden(q4.device)[:count, :count])
    if visible.window is not None and key_count > visible.window:
        queries_at = slice(tile.start + tile.before, tile.end + tile.before)
        distances = visible.distances(queries_at, tile.keys, q4.device)
        by_head.masked_fill_(distances >= visible.window, float("-inf"))
    visible.hide(by_head, tile.start, float("-inf"))
    return torch._softmax(scores, -1, False).to(q4.dtype)


@functools.cache
def _later_forbidden(device: torch.device) -> torch.Tensor:
    """Return (QUERY_TILE, QUERY_TILE): 0 at keys up to the query, -inf at later ones."""
    return torch.full((QUERY_TILE, QUERY_TILE), float("-inf"), device=device).triu_(1)

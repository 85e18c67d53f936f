"""A static KV cache for answers, with which a CUDA graph replays the pass of one token without launch overhead."""

import sys
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from loratory.engine.config.optimizations import LEFT_OUT, is_wanted
from loratory.engine.hardware.processor import memory_now

Forward = Callable[[torch.Tensor, Cache], torch.Tensor]  # ids (1, tokens) and the cache → logits (1, n, vocabulary)
TokenPass = Callable[[], torch.Tensor]  # of one token; returns the logits of the next, (1, vocabulary)
Capture = Callable[[TokenPass], TokenPass]  # records a pass; returns its replay, which writes into the same tensor

_FEWEST_POSITIONS = 1024  # of a cache; doubled for longer conversations, so a graph serves several of their turns
_MOST_OF_FREE_MEMORY = 0.5  # the next conversation, or a second model, may need the rest
_TOLERANCE = 0.05  # of the largest logit, which rounding to 16 bits stays below and a wrong mask does not


class FixedCache(Cache):  # type: ignore[misc]
    """Keys and values of one answer, at the same addresses from its first token to its last.

    Layers with a sliding window keep every position; their mask hides the old ones. transformers' static layer for them
    counts in Python, which a graph does not replay.
    """

    def __init__(self, layers: int, positions: int) -> None:
        super().__init__(layers=[StaticLayer(positions) for _ in range(layers)])
        self.positions = positions

    def rewind(self, length: torch.Tensor) -> None:
        """Go back to `length` used positions; later ones are overwritten."""
        for layer in self.layers:
            layer.cumulative_length.copy_(length)


@dataclass(eq=False)
class _Slot:
    """A cache, and the graph that writes into it."""

    cache: FixedCache
    ids: torch.Tensor  # (1, 1), the token that the graph reads
    repeat: TokenPass | None = None
    borrower: "weakref.ref[LentCache] | None" = None

    @property
    def is_lent(self) -> bool:
        return self.borrower is not None and self.borrower() is not None


class LentCache:
    """A borrowed cache; the answer returns it by dropping this object."""

    def __init__(self, caches: "FixedCaches", slot: _Slot, forward: Forward) -> None:
        self._caches = caches
        self._slot = slot
        self._forward = forward
        slot.borrower = weakref.ref(self)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Append `ids`, shape (1, tokens); return the logits of the next token, (1, vocabulary)."""
        slot, forward = self._slot, self._forward
        if ids.shape[1] > 1 or (slot.repeat is None and self._caches.capture is None):
            return forward(ids, slot.cache)[:, -1].float()
        slot.ids.copy_(ids)
        if slot.repeat is None:
            return self._caches.capture_pass(slot, lambda: forward(slot.ids, slot.cache)[:, -1].float())
        return slot.repeat()


class FixedCaches:
    """The static caches of one model: one for each adapter and one for the base, each lent to one answer at a time.

    A graph holds addresses of weights and adapters: call `clear` before these change.

    Args:
        why_not: Why static caches are not used; empty if they are.
        capture: Records a pass; None to compute each one.
    """

    def __init__(self, model: PreTrainedModel, why_not: str = "", capture: Capture | None = None) -> None:
        self.why_not = why_not
        self.capture = capture
        self._model = model
        self._layers = 0
        self._bytes_a_position = 0
        self._slots: dict[str, _Slot] = {}
        self._reported_reasons: set[str] = set()

    @classmethod
    def for_model(cls, model: PreTrainedModel) -> "FixedCaches":
        """Return the caches of a model; none on a CPU, where memory bandwidth limits a pass and not its launches."""
        if model.device.type != "cuda":
            return cls(model, "needs CUDA")
        caches = cls(model, capture=capture_on_cuda)
        if reason := reason_against(model):
            caches.give_up(reason)
        return caches

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def lend(self, adapter: str, positions: int, forward: Forward) -> LentCache | None:
        """Lend an empty cache of at least so many positions; None if the answer has to use a growing one.

        They are those of the prompt and the longest answer. The name of the active adapter is empty for none.
        """
        if self.why_not:
            return None
        if not self._layers:
            self._measure(forward)
        slot = self._slots.get(adapter)
        if slot is not None and slot.is_lent:
            return None
        if slot is None or slot.cache.positions < positions:
            self._slots.pop(adapter, None)
            slot = None  # before the next one takes memory
            size = max(_FEWEST_POSITIONS, 1 << (positions - 1).bit_length())
            cache_bytes, free = self._bytes_a_position * size, _MOST_OF_FREE_MEMORY * free_bytes(self._model.device)
            if cache_bytes > free:
                self.report(
                    f"a cache of {size:,} positions takes {cache_bytes / 2**30:.2f} of at most {free / 2**30:.2f} GiB"
                )
                return None
            ids = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
            slot = self._slots[adapter] = _Slot(FixedCache(self._layers, size), ids)
        else:
            slot.cache.reset()
        return LentCache(self, slot, forward)

    def capture_pass(self, slot: _Slot, one_token: TokenPass) -> torch.Tensor:
        """Compute a pass, record it and replay it; if the results differ, compute every pass from now on."""
        assert self.capture is not None
        cache = slot.cache
        before = cache.layers[0].cumulative_length.clone()  # used positions
        expected = one_token()  # before recording, as libraries set themselves up in their first call
        try:
            cache.rewind(before)
            repeat = self.capture(one_token)
            cache.rewind(before)
            logits = repeat()
            if logits_agree(logits, expected):
                slot.repeat = repeat
                return logits
            reason = "a repeated CUDA graph gives other logits"
        except Exception as error:  # of CUDA, or of any layer that cannot be recorded
            traceback.print_exc()
            reason = f"a token's pass cannot be recorded as a CUDA graph ({type(error).__name__})"
        self.give_up(reason)
        cache.rewind(before)
        return one_token()

    def give_up(self, reason: str) -> None:
        """Lend no caches from now on; running answers keep theirs."""
        self.why_not, self.capture = reason, None
        self.clear()
        self.report(reason)

    def clear(self) -> None:
        """Drop caches and graphs."""
        self._slots.clear()

    def report(self, reason: str) -> None:
        """Log why answers use a growing cache, each reason once."""
        if reason not in self._reported_reasons:
            self._reported_reasons.add(reason)
            print(f"Answers without a static cache: {reason}.", file=sys.stderr, flush=True)

    def _measure(self, forward: Forward) -> None:
        """Count the layers of a cache, and the bytes of one of its positions."""
        cache = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        forward(torch.ones(1, 1, dtype=torch.long, device=self._model.device), cache)
        self._layers = len(cache.layers)
        self._bytes_a_position = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def logits_agree(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are equal up to rounding to 16 bits."""
    return bool((actual - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def reason_against(model: PreTrainedModel) -> str:
    """Return why a model cannot use a static cache; empty if it can."""
    config = model.config.get_text_config(decoder=True)
    if not is_wanted("static_cache"):
        return LEFT_OUT
    if config is not model.config:
        return "its prompts may have images"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"{config._attn_implementation} does not support a mask over unused positions"
    if not model._can_compile_fullgraph or not model._supports_default_dynamic_cache():
        return f"transformers has no static cache for {type(model).__name__}"
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        return "int8 layers wait for the GPU to find outliers"
    kinds = {type(layer) for layer in StaticCache(config=config, max_cache_len=1).layers}
    if not kinds <= {StaticLayer, StaticSlidingWindowLayer}:
        return "not every layer keeps keys and values of its own"
    return ""


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a device, with those that PyTorch has reserved and does not use."""
    if device.type != "cuda":
        return memory_now().free_bytes
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + spare)


def capture_on_cuda(one_token: TokenPass) -> TokenPass:
    """Record a pass as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    # Other threads of this process may use CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits = one_token()

    def repeat() -> torch.Tensor:
        graph.replay()
        return logits

    return repeat

"""A few rows of a run, tried through its model before it trains: the same losses and the same attention, however computed.

Joined rows are tried twice. Short ones go through the whole model, and their losses are compared. Then one that is longer than a
tile of queries, and than a sliding window, goes through a few layers, and the outputs of attention themselves are compared:
the mean of a loss would hide an error beyond a window.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from loratory.engine.config.rules import QUERY_TILE
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.training.batching.batches import PassTensors, pad
from loratory.engine.training.distribution import is_sharded
from loratory.engine.training.failure import is_out_of_memory
from loratory.engine.training.image_parts import language_model_of
from loratory.engine.training.ops.attention import UnsupportedAttentionError
from loratory.engine.training.ops.loss import causal_lm_of

_SHORT = 64  # tokens of each row whose loss is compared
_SHORTER = 48  # of one of them, which is padded where rows are
_PAST = 32  # tokens beyond the longest tile or window; attention to them is compared by itself too
# Tokens of the longest row that is tried; a window of 1,024 is crossed on a processor, one of 4,096 on a GPU.
_LONGEST_ON_PROCESSOR = 1024 + _PAST
_LONGEST_ON_GPU = 4096 + _PAST
_MOST_LAYERS = 8
_MOST_GRADIENTS = 16  # trained tensors whose gradients are compared, from all layers
_LOSS_TOLERANCE = 0.02  # of the mean loss; bfloat16 moves it by a tenth of that
_ATTENTION_TOLERANCE = 0.05  # of the norm of attention's output; bfloat16 moves it by a twentieth of that


Rows = Sequence[TokenizedRow]


class _EnoughError(Exception):
    """The layers that are compared have been computed."""


@dataclass(frozen=True)
class Probe:
    """What is tried, and through what."""

    model: Any  # with its adapter
    rows: tuple[TokenizedRow, ...]  # short ones; one is there twice: seen again, it would be easy
    # A long one between short ones; none where rows of this run cross no tile and no window.
    long_rows: tuple[TokenizedRow, ...]
    pad_token_id: int
    autocast: torch.dtype | None  # what products are cast to

    @classmethod
    def from_rows(
        cls, model: Any, rows: Sequence[TokenizedRow], max_length: int, pad_token_id: int, autocast: torch.dtype | None
    ) -> "Probe":
        """Choose rows among those of a run."""
        # Images stay out: their tokens mean nothing without them.
        image_token = getattr(causal_lm_of(model).config, "image_token_id", None)
        first, middle = ([i for i in row.input_ids if i != image_token] for row in (rows[0], rows[len(rows) // 2]))
        short = tuple(_all_trained(ids) for ids in (first[:_SHORT], middle[:_SHORTER], first[:_SHORT]))
        length = _crossing_length(causal_lm_of(model).config.get_text_config(), max_length, _device(model))
        crossing = _all_trained(list(itertools.islice(itertools.cycle([*first, *middle]), length)))
        long = (short[0], crossing, short[1]) if length else ()
        return cls(model, short, long, pad_token_id, autocast)

    def padded(self, *, masked: bool = True) -> PassTensors:
        """Return the short rows side by side."""
        return pad(self.rows, self.pad_token_id, masked=masked)

    def own_loss(self) -> float:
        """Return the summed loss of the short rows by the model's own logits, each row by itself."""
        total = 0.0
        for row in self.rows:
            batch = pad([row], self.pad_token_id).to(_device(self.model))
            with torch.no_grad(), self.casting():
                logits = self.model(**batch.inputs).logits[:, -row.length :]  # without virtual tokens
            flat = logits.reshape(-1, logits.shape[-1])[batch.trained.positions].float()
            total += float(functional.cross_entropy(flat, batch.trained.targets, reduction="sum"))
        return total

    def loss(self, batch: PassTensors) -> float:
        """Return the summed loss of a pass, by the loss that is attached to the model."""
        batch = batch.to(_device(self.model))
        with torch.no_grad(), self.casting():
            return float(self.model(**batch.inputs, trained_tokens=batch.trained))

    def gradients(self, batch: PassTensors) -> list[torch.Tensor]:
        """Return the gradients of a few trained tensors, in float32, by the loss that is attached to the model."""
        batch = batch.to(_device(self.model))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        some = trained[:: max(1, len(trained) // _MOST_GRADIENTS)]
        with self.casting():
            loss = self.model(**batch.inputs, trained_tokens=batch.trained)
        gradients = torch.autograd.grad(loss, some, allow_unused=True)
        return [torch.zeros(()) if gradient is None else gradient.float() for gradient in gradients]

    def separate_attention(self) -> list[list[torch.Tensor]]:
        """Return the outputs of attention for each of the long rows by itself, by layer; the loss must be attached."""
        return [self._attention(pad([row], self.pad_token_id)) for row in self.long_rows]

    def keeps_rows_separate(
        self, expected: float, separate: Sequence[Sequence[torch.Tensor]], combine: Callable[[Rows], PassTensors]
    ) -> bool:
        """Return whether combined rows have the losses and attention of separate ones: `own_loss`, `separate_attention`."""
        try:
            if not losses_match(self.loss(combine(self.rows)), expected):
                return False
            together = self._attention(combine(self.long_rows)) if self.long_rows else []
            return all(
                _relative_error(own, row[layer]) <= _ATTENTION_TOLERANCE
                and _relative_error(own[-_PAST:], row[layer][-_PAST:]) <= _ATTENTION_TOLERANCE
                for layer, whole in enumerate(together)
                for own, row in zip(self._by_row(whole), separate, strict=True)
            )
        except (UnsupportedAttentionError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return False

    def _by_row(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return the part of each of the long rows, (tokens, features), where they are joined or padded to the longest."""
        lengths = [len(row.input_ids) for row in self.long_rows]
        width = max(lengths)
        padded = whole.shape[0] == width * len(lengths)
        starts = [number * width for number in range(len(lengths))] if padded else [0, *itertools.accumulate(lengths)]
        return [whole[start : start + length] for start, length in zip(starts, lengths, strict=False)]

    def casting(self) -> torch.autocast:
        """Return the autocast context of a pass."""
        kind = _device(self.model).type
        return torch.autocast(kind, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def _attention(self, batch: PassTensors) -> list[torch.Tensor]:
        """Return outputs of attention for one sequence in the first layers, (tokens, features) each."""
        outputs: list[torch.Tensor] = []
        with _listening(language_model_of(causal_lm_of(self.model)), outputs), contextlib.suppress(_EnoughError):
            self.loss(batch)
        if is_sharded(self.model):
            self.model.reset_iter_state()  # the pass was interrupted
        return outputs


def _all_trained(ids: list[int]) -> TokenizedRow:
    return TokenizedRow(0, 0, ids, ids)  # every position is compared


def losses_match(got: float, expected: float) -> bool:
    """Return whether two losses agree, within rounding."""
    return abs(got - expected) <= _LOSS_TOLERANCE * abs(expected)


def _crossing_length(text_config: Any, max_length: int, device: torch.device) -> int:
    """Return the tokens that a row needs to cross every tile and window that rows of this run cross; 0 where they cross none."""
    window = getattr(text_config, "sliding_window", None) or 0
    most = _LONGEST_ON_PROCESSOR if device.type == "cpu" else _LONGEST_ON_GPU
    edges = [edge for edge in (QUERY_TILE, window) if 0 < edge < max_length and edge + _PAST <= most]
    return max(edges) + _PAST if edges else 0


@contextlib.contextmanager
def _listening(causal_lm: Any, outputs: list[torch.Tensor]) -> Iterator[None]:
    """Collect outputs of attention until layers of every kind were computed, then end the pass with `_EnoughError`."""
    layers = [module for module in causal_lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    kinds = list(getattr(causal_lm.config.get_text_config(), "layer_types", None) or ["full_attention"])
    last = max(kinds.index(kind) for kind in set(kinds))
    probed_layers = layers[: min(last + 1, _MOST_LAYERS)]

    def collect(_module: Any, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        outputs.append(states.detach().flatten(0, 1).float())

    def stop(_module: Any, _inputs: Any, _output: Any) -> None:
        raise _EnoughError

    attentions = (module for layer in probed_layers for module in layer.modules() if hasattr(module, "is_causal"))
    handles = [attention.register_forward_hook(collect) for attention in attentions]
    handles.extend(layer.register_forward_hook(stop) for layer in probed_layers[-1:])
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of two tensors by the norm of the expected one; infinite where either holds NaN."""
    share = float((got - expected).norm() / expected.norm().clamp_min(1e-6))
    return math.inf if math.isnan(share) else share


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device

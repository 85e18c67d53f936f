"""Greedy decoding of several prompts as one batch: the weights are read once for all of them."""

import inspect
from collections.abc import Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from engine.chat.worker.static_cache import free_bytes, logits_agree
from engine.chat.worker.weights import PIECE_TOKENS, BranchWeights

_MOST_ROWS = {"cpu": 8, "cuda": 32}  # more gain little on a CPU, which is then limited by its products
_MOST_PADDED = 1.25  # times the tokens of the prompts; with more padding, a CPU loses more than it gains
_MOST_OF_FREE_MEMORY = 0.5
_TOKENS_AT_ONCE = 4096  # of prompts that a GPU reads together


class BatchedAnswers:
    """Answers of one branch to several prompts.

    Prompts are padded on the left, with a mask and matching positions. Rows leave the batch when they end.

    Args:
        weights: The model, without virtual tokens.
        prompts: Their tokens, the longest first.
        most: The most tokens of each answer.
        end_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        weights: BranchWeights,
        prompts: Sequence[tuple[int, ...]],
        most: Sequence[int],
        end_ids: frozenset[int],
    ) -> None:
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self._weights = weights
        self._prompts = prompts
        self._most = most
        self._end_ids = end_ids
        self._rows = list(range(len(prompts)))  # those that are not complete
        self._cache = weights.new_cache()
        longest, device = len(prompts[0]), weights.holder.model.device
        padding = [[0] * (longest - len(prompt)) for prompt in prompts]
        rows = zip(padding, prompts, strict=True)
        self._ids = torch.tensor([[*before, *prompt] for before, prompt in rows], device=device)
        self._mask = torch.tensor([[0] * len(one) + [1] * (longest - len(one)) for one in padding], device=device)
        self._logits = self._read_prompts()

    @property
    def complete_count(self) -> int:
        """Number of complete answers."""
        return len(self.tokens) - len(self._rows)

    @property
    def is_done(self) -> bool:
        """Whether all answers are complete."""
        return not self._rows

    def keeps_rows_apart(self) -> bool:
        """Whether the prompt with most padding has the same logits as alone; to be called before `advance`."""
        prompt = self._prompts[-1]
        return logits_agree(self._logits[-1:], self._weights.logits_at(prompt, [len(prompt) - 1]))

    def advance(self) -> None:
        """Generate the next token of every incomplete answer."""
        next_tokens: list[int] = self._logits.argmax(dim=-1).tolist()
        stay = []
        for place, (row, token) in enumerate(zip(self._rows, next_tokens, strict=True)):
            if token not in self._end_ids:
                self.tokens[row].append(token)
                if len(self.tokens[row]) < self._most[row]:
                    stay.append(place)
        if len(stay) < len(self._rows):
            self._keep(stay)
        if stay:
            ids = self._mask.new_tensor([[next_tokens[place]] for place in stay])
            positions = self._mask.sum(dim=1, keepdim=True)
            self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
            self._logits = self._forward(ids, self._mask, positions)

    def _keep(self, places: Sequence[int]) -> None:
        self._rows = [self._rows[place] for place in places]
        if places:
            assert self._cache is not None  # `most_rows` requires one
            indices = torch.tensor(places, device=self._mask.device)
            self._mask = self._mask[indices]
            self._cache.batch_select_indices(indices)

    def _read_prompts(self) -> torch.Tensor:
        at_once = PIECE_TOKENS if self._ids.device.type == "cpu" else _TOKENS_AT_ONCE
        width = max(1, at_once // len(self._prompts))
        positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)
        for start in range(0, self._ids.shape[1], width):
            end = start + width
            logits = self._forward(self._ids[:, start:end], self._mask[:, :end], positions[:, start:end])
        return logits

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return logits after the last of `ids`, (rows, vocabulary)."""
        self._weights.holder.switch_to(self._weights.adapter)
        padding = {"attention_mask": mask, "position_ids": positions}
        return self._weights.holder.forward(ids, self._cache, **padding)[:, -1].float()


def most_rows(weights: BranchWeights, positions: int) -> int:
    """Return the batch size for answers of so many positions with their prompts; 1 where rows cannot be batched."""
    model, cache = weights.holder.model, weights.new_cache()
    takes = inspect.signature(model.forward).parameters
    if (
        not isinstance(cache, DynamicCache)
        or weights.virtual_tokens
        or not {"attention_mask", "position_ids"} <= {*takes}
    ):
        return 1
    if not {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return 1
    logits = weights.next_logits(torch.zeros(1, 1, dtype=torch.long, device=model.device), cache)
    a_position = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    a_row = 2 * positions * a_position + 4 * logits.nbytes  # a growing cache is copied as it grows
    fitting = int(_MOST_OF_FREE_MEMORY * free_bytes(model.device) / a_row)
    return max(1, min(fitting, _MOST_ROWS.get(model.device.type, 1)))


def batches_of_prompts(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Group prompts into batches of at most `rows`, the longest first and with little padding."""
    batches: list[list[int]] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        padded_tokens = (len(batches[-1]) + 1) * lengths[batches[-1][0]] if batches else 0
        if batches and len(batches[-1]) < rows and padded_tokens <= _MOST_PADDED * (tokens + lengths[number]):
            batches[-1].append(number)
        else:
            batches.append([number])
            tokens = 0
        tokens += lengths[number]
    return batches

"""Answers to several prompts side by side, for evaluations and rollouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from loratory.engine.generation.worker.sampling import LIKELIEST, Sampling

# ids (rows, tokens), cache, attention mask and position ids → logits after the last of ids, (rows, vocabulary)
Forward = Callable[[torch.Tensor, Cache, torch.Tensor, torch.Tensor], torch.Tensor]

# A long prompt is read in pieces: a stop takes effect, and what the pass needs stays small.
PIECE_TOKENS = 512
_TOKENS_AT_ONCE = 4096  # of prompts that a GPU reads together
_LEAVING_SHARE = (
    8  # rows leave the batch once they are one in so many: to copy the cache takes as long as a token of it
)


class ReservedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, with room for the tokens to come: a growing layer copies all of them for each token."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        self._positions = positions
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            self._room = self._reserve(key_states, self.keys, end), self._reserve(value_states, self.values, end)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, used:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def _reserve(self, states: torch.Tensor, before: torch.Tensor, end: int) -> torch.Tensor:
        rows, heads, _, size = states.shape
        room = states.new_empty(rows, heads, max(self._positions, end), size)
        if before.numel():
            room[:, :, : before.shape[-2]] = before
        return room

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._room = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None


def reserve(cache: Cache, positions: int) -> Cache:
    """Give the growing layers of an empty cache room for so many positions."""
    cache.layers = [ReservedLayer(positions) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@dataclass(eq=False)
class WrittenAnswer:
    """An answer so far. Values are those of its tokens, and of the token that ended it."""

    tokens: list[int] = field(default_factory=list)
    end: int | None = None  # the token that ended it, which is not among the tokens
    log_probabilities: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class AnswerBatch:
    """Answers to prompts, each prompt read once and answered `copies` times.

    Prompts are padded on the left, with a mask and matching positions. Rows leave the batch when they end.

    Args:
        forward: The model.
        cache: An empty one.
        prompts: Their tokens, the longest first.
        most: The most tokens of each answer, by prompt.
        end_ids: Tokens that end an answer.
        sampling: How tokens are chosen.
        copies: Answers to each prompt, which follow one another in `answers`.
        between: Called before each pass; may raise to end.
        reads_whole: Read the prompts in one pass, as their images need it.
    """

    def __init__(
        self,
        forward: Forward,
        cache: Cache,
        device: torch.device,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        end_ids: frozenset[int],
        *,
        sampling: Sampling = LIKELIEST,
        copies: int = 1,
        between: Callable[[], None] = lambda: None,
        reads_whole: bool = False,
    ) -> None:
        self.answers = [WrittenAnswer() for _ in prompts for _ in range(copies)]
        self._most = [limit for limit in most for _ in range(copies)]
        self._forward, self._sampling, self._between = forward, sampling, between
        self._end_ids = end_ids
        self._rows = list(range(len(self.answers)))  # of the batch, by the number of the answer
        self._is_open = [True] * len(self.answers)
        self._cache = reserve(cache, len(prompts[0]) + max(most))
        longest = len(prompts[0])
        padding = [longest - len(prompt) for prompt in prompts]
        ids = [[*[0] * count, *prompt] for count, prompt in zip(padding, prompts, strict=True)]
        mask = torch.tensor([[0] * count + [1] * (longest - count) for count in padding], device=device)
        self._logits = self._read(torch.tensor(ids, device=device), mask, whole=reads_whole)
        if copies > 1:
            self._cache.batch_repeat_interleave(copies)
            self._logits = self._logits.repeat_interleave(copies, dim=0)
            mask = mask.repeat_interleave(copies, dim=0)
        # Room for the tokens to come, all of which are seen.
        self._mask = torch.cat([mask, mask.new_ones(mask.shape[0], max(most))], dim=1)
        self._used, self._positions = longest, mask.sum(dim=1, keepdim=True)

    def move_positions(self, moved: torch.Tensor) -> None:
        """Add a number for each prompt, (prompts, 1), to the positions of its answers; call it before `advance`."""
        self._positions = self._positions + moved.repeat_interleave(len(self.answers) // len(moved), dim=0)

    @property
    def complete_count(self) -> int:
        """Number of complete answers."""
        return self._is_open.count(False)

    @property
    def is_done(self) -> bool:
        """Whether all answers are complete."""
        return not any(self._is_open)

    def advance(self) -> None:
        """Generate the next token of every incomplete answer."""
        self._between()
        choice = self._sampling.choose(self._logits)
        values = (choice.tokens.tolist(), choice.log_probabilities.tolist(), choice.entropies.tolist())
        for number, token, log_probability, entropy in zip(self._rows, *values, strict=True):
            if not self._is_open[number]:
                continue
            answer = self.answers[number]
            if self._sampling.temperature:
                answer.log_probabilities.append(log_probability)
                answer.entropies.append(entropy)
            if token in self._end_ids:
                answer.end = token
            else:
                answer.tokens.append(token)
            self._is_open[number] = answer.end is None and len(answer.tokens) < self._most[number]
        if self.is_done:
            return
        tokens = choice.tokens.unsqueeze(1)
        remaining = [index for index, number in enumerate(self._rows) if self._is_open[number]]
        if (len(self._rows) - len(remaining)) * _LEAVING_SHARE >= len(self._rows):
            tokens = self._keep(remaining, tokens)
        self._used += 1
        self._logits = self._forward(tokens, self._cache, self._mask[:, : self._used], self._positions)
        self._positions = self._positions + 1

    def _keep(self, kept_rows: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        self._rows = [self._rows[index] for index in kept_rows]
        indices = torch.tensor(kept_rows, device=self._mask.device)
        self._mask, self._positions = self._mask[indices], self._positions[indices]
        self._cache.batch_select_indices(indices)
        return tokens[indices]

    def _read(self, ids: torch.Tensor, mask: torch.Tensor, *, whole: bool) -> torch.Tensor:
        at_once = PIECE_TOKENS if ids.device.type == "cpu" else _TOKENS_AT_ONCE
        width = ids.shape[1] if whole else max(1, at_once // len(ids))
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        for start in range(0, ids.shape[1], width):
            self._between()
            part = slice(start, start + width)
            logits = self._forward(ids[:, part], self._cache, mask[:, : start + width], positions[:, part])
        return logits

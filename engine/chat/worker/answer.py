"""One answer on one branch, written one token a turn."""

import time
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.chat.contract import Branch, ChatChunk, FinishReason
from engine.chat.worker.prompt import Decoder, TextStream
from engine.chat.worker.weights import PIECE_TOKENS, BranchWeights
from engine.config.results import SamplingConfig
from engine.errors import ModelError


class Sampler:
    """Draws tokens as transformers' `generate` does: the same processors in the same order, the same random numbers."""

    def __init__(self, sampling: SamplingConfig, device: torch.device) -> None:
        self._greedy = sampling.greedy
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not sampling.greedy:
            if sampling.temperature != 1.0:
                self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._random = torch.Generator(device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def choose(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """Return the next token.

        Args:
            ids: Everything so far, shape (1, tokens).
            logits: Float32, shape (1, vocabulary).
        """
        scores = self._processors(ids, logits)
        if self._greedy:
            return int(scores.argmax(dim=-1))
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._random))


@dataclass(frozen=True)
class AnswerRules:
    """What a request fixes for all its branches."""

    prompt_ids: tuple[int, ...]
    end_ids: frozenset[int]
    sampling: SamplingConfig
    context_length: int | None  # positions; None where the model has no limit


class Answer:
    """An answer under way.

    Args:
        branch: Its name, put on every chunk.
        weights: What writes it.
        rules: Prompt, ends and sampling.
        decoder: Turns tokens into text.

    Raises:
        ModelError: If the prompt leaves no room in the context.
    """

    def __init__(self, branch: Branch, weights: BranchWeights, rules: AnswerRules, decoder: Decoder) -> None:
        self.branch = branch
        self.done = False
        self._weights = weights
        self._rules = rules
        self._room = _room_for_tokens(weights, rules)
        device = weights.holder.model.device
        self._sampler = Sampler(rules.sampling, device)
        self._ids = torch.tensor([rules.prompt_ids], device=device)
        self._read = 0  # tokens of `_ids` that the cache holds
        with torch.inference_mode():
            self._cache = weights.new_cache()
        self._text = TextStream(decoder)
        self._tokens = 0
        self._started = time.perf_counter()
        self._first_token_at: float | None = None

    def advance(self) -> ChatChunk | None:
        """Take one turn: a piece of the prompt (then nothing is returned), or one token."""
        with torch.inference_mode():
            logits = self._read_on()
            if logits is None:
                return None
            token = self._sampler.choose(self._ids, logits)
            return self._take(token)

    def _take(self, token: int) -> ChatChunk:
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        if token in self._rules.end_ids:
            return self._finish("eos")
        self._tokens += 1
        self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)
        text = self._text.add(token)
        if self._tokens >= self._rules.sampling.max_new_tokens:
            return self._finish("length", text)
        if self._tokens >= self._room:
            return self._finish("context", text)
        return self._chunk(text)

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was answered so far, without the token that ends it."""
        return tuple(self._ids[0, len(self._rules.prompt_ids) :].tolist())

    def stop(self) -> ChatChunk:
        """End it here, because the person wants no more."""
        return self._finish("stopped")

    def _read_on(self) -> torch.Tensor | None:
        """Read the next tokens; returns the logits after the last one, None while some are left."""
        if self._cache is None:
            return self._weights.next_logits(self._ids, None)
        piece = self._ids[:, self._read : self._read + PIECE_TOKENS]
        logits = self._weights.next_logits(piece, self._cache)
        self._read += piece.shape[1]
        return logits if self._read == self._ids.shape[1] else None

    def _finish(self, reason: FinishReason, text: str = "") -> ChatChunk:
        self.done = True
        self._cache = None
        return self._chunk(text + self._text.finish(), reason)

    def _chunk(self, text: str, reason: FinishReason | None = None) -> ChatChunk:
        first = self._first_token_at
        seconds = time.perf_counter() - first if first is not None else 0.0
        return ChatChunk(
            branch=self.branch,
            text=text,
            tokens=self._tokens,
            tokens_per_second=(self._tokens - 1) / seconds if self._tokens > 1 and seconds > 0 else 0.0,
            prompt_tokens=len(self._rules.prompt_ids),
            first_token_seconds=first - self._started if first is not None else None,
            done=reason is not None,
            finish_reason=reason,
        )


def _room_for_tokens(weights: BranchWeights, rules: AnswerRules) -> float:
    if rules.context_length is None:
        return float("inf")
    used = len(rules.prompt_ids) + weights.virtual_tokens
    if used >= rules.context_length:
        raise ModelError(
            f"The conversation takes {used:,} tokens, and {weights.holder.name} holds {rules.context_length:,}.",
            "Start a new conversation, or take turns out of this one.",
        )
    return rules.context_length - used

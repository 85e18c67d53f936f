"""Generate one answer on one branch: the prompt as in training, then one token a turn, with its text streamed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loratory.engine.chat.contract import Branch, ChatChunk, FinishReason, PromptView
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.conversation import Conversation, ImageRef, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.images import image_characters, image_text_of
from loratory.engine.data.render.sequence_plan import plan_prompt
from loratory.engine.data.render.template import ChatTokenizer, rendering_confined, stop_token_ids
from loratory.engine.data.render.tokenize import prompt_ids
from loratory.engine.errors import ModelError
from loratory.engine.generation.worker.batch import PIECE_TOKENS
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.source import ModelSource

if TYPE_CHECKING:
    from loratory.engine.training.batching.images import ImageInputs

TOKENIZER_CONFIG = "tokenizer_config.json"


class DecodingTokenizer(ChatTokenizer, Protocol):
    """A tokenizer that renders prompts and decodes answers."""

    def decode(
        self,
        token_ids: Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str: ...


def load_chat_tokenizer(
    folders: Sequence[Path], base: Path, name: str, vision: VisionConfig | None = None
) -> DecodingTokenizer:
    """Load the tokenizer that training saved, with its template; the base model's if there is none.

    `vision` says how large images are; the model's own size by default.

    Raises:
        ModelError: If the tokenizer cannot be read.
    """
    folder = next((folder for folder in folders if (folder / TOKENIZER_CONFIG).is_file()), base)
    tokenizer: DecodingTokenizer
    tokenizer, _ = load_tokenizer(ModelSource(str(folder), name), vision, base)
    return tokenizer


def image_inputs_of(tokenizer: object, media: Path | None) -> "ImageInputs | None":
    """Return what opens the images of a media store for a model; None where it takes none."""
    processor = image_text_of(tokenizer)
    if processor is None or media is None:
        return None
    from loratory.engine.models.families.worker.processor import ImageProcessor
    from loratory.engine.training.batching.images import ImageInputs

    assert isinstance(processor, ImageProcessor)
    return ImageInputs(processor, MediaStore(media))


def render_prompt(messages: Sequence[Message], tokenizer: ChatTokenizer) -> PromptView:
    """Render a conversation as the prompt that the model gets.

    Raises:
        ModelError: If the chat template refuses the conversation, or exceeds its time limit; if the model takes no images.
    """
    conversation = Conversation(tuple(messages))
    if image_text_of(tokenizer) is None and any(message.images for message in messages):
        fix = "Remove the images, or choose a vision-language model."
        raise ModelError("This model takes text only, and the conversation has images.", fix)
    try:
        with rendering_confined(len(conversation.text()) + image_characters(conversation, tokenizer)):
            text = plan_prompt(conversation, tokenizer).text
            ids = prompt_ids(messages, tokenizer)
    except RowProblemError as error:
        fix = "Change the turn that it names, or leave the system prompt out."
        raise ModelError(f"The model's chat template refuses this conversation: {error.problem}.", fix) from error
    return PromptView(text=text, ids=tuple(ids))


def end_token_ids(tokenizer: ChatTokenizer, generation: GenerationConfig | None) -> frozenset[int]:
    """Return the stop tokens of the chat template and of the model's generation config."""
    eos = generation.eos_token_id if generation is not None else None
    eos_ids = eos if isinstance(eos, list) else [eos]
    return frozenset([*stop_token_ids(tokenizer), *(token for token in eos_ids if token is not None)])


class TextStream:
    """Decodes tokens incrementally; the joined pieces equal the text of all tokens decoded at once.

    The text of a token depends on the one before it (SentencePiece puts the space there), so each piece is the
    difference between two decodings of a short window, as in Hugging Face's text-generation-inference.
    """

    def __init__(self, tokenizer: DecodingTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window_start = 0
        self._shown_until = 0

    def add(self, token: int) -> str:
        """Return the text that is final now; empty while a character is incomplete."""
        self._tokens.append(token)
        piece = self._pending_text()
        # Decoders write U+FFFD for bytes that do not make a character, or do not yet.
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._window_start, self._shown_until = self._shown_until, len(self._tokens)
        return piece

    def finish(self) -> str:
        """Return the remaining text, complete or not."""
        piece = self._pending_text()
        self._window_start = self._shown_until = len(self._tokens)
        return piece

    def _pending_text(self) -> str:
        before = self._decode(self._tokens[self._window_start : self._shown_until])
        return self._decode(self._tokens[self._window_start :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Sampler:
    """Samples tokens as transformers' `generate`: the same processors, order and random numbers."""

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
    """What all branches of a request share."""

    prompt_ids: tuple[int, ...]
    end_ids: frozenset[int]
    sampling: SamplingConfig
    context_length: int | None  # positions; None where the model has no limit
    images: tuple[ImageRef, ...] = ()  # of the prompt, in order


class Answer:
    """An answer in progress.

    Raises:
        ModelError: If the prompt leaves no room in the context.
    """

    def __init__(
        self, branch: Branch, weights: BranchWeights, rules: AnswerRules, tokenizer: DecodingTokenizer
    ) -> None:
        self.branch = branch
        self.is_done = False
        self._weights = weights
        self._rules = rules
        self._room = _room_for_tokens(weights, rules)
        device = weights.holder.model.device
        self._sampler = Sampler(rules.sampling, device)
        self._ids = torch.tensor([rules.prompt_ids], device=device)
        self._cached_tokens = 0  # tokens of `_ids` that the cache holds
        self._moved: torch.Tensor | None = None  # how far images move the positions behind them, (1, 1)
        longest = len(rules.prompt_ids) + min(self._room, rules.sampling.max_new_tokens)
        with torch.inference_mode():
            self._cache = weights.answer_cache(int(longest))
        self._text = TextStream(tokenizer)
        self._tokens = 0
        self._start_time = time.perf_counter()
        self._first_token_at: float | None = None

    def advance(self) -> ChatChunk | None:
        """Read a piece of the prompt, which returns None, or generate one token."""
        with torch.inference_mode():
            logits = self._next_logits()
            return None if logits is None else self._take(self._sampler.choose(self._ids, logits))

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
        """Tokens generated so far, without the stop token."""
        return tuple(self._ids[0, len(self._rules.prompt_ids) :].tolist())

    def stop(self) -> ChatChunk:
        """End the answer early."""
        return self._finish("stopped")

    def _next_logits(self) -> torch.Tensor | None:
        """Read the next tokens; return the logits after the last one, None while the prompt is incomplete."""
        if self._cache is None:
            return self._weights.next_logits(self._ids, None)
        images = self._rules.images if not self._cached_tokens else ()
        inputs: dict[str, torch.Tensor] = {}
        # Images are read in one piece with their prompt: some models let each token of an image see all of it.
        length = self._ids.shape[1] if images else PIECE_TOKENS
        piece = self._ids[:, self._cached_tokens : self._cached_tokens + length]
        if images:
            inputs, self._moved = self._weights.holder.image_inputs([images], piece)
        elif self._moved is not None:
            inputs = {"position_ids": self._moved + self._cached_tokens}
        logits = self._weights.next_logits(piece, self._cache, **inputs)
        self._cached_tokens += piece.shape[1]
        return logits if self._cached_tokens == self._ids.shape[1] else None

    def _finish(self, reason: FinishReason, text: str = "") -> ChatChunk:
        self.is_done = True
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
            first_token_seconds=first - self._start_time if first is not None else None,
            done=reason is not None,
            finish_reason=reason,
        )


def _room_for_tokens(weights: BranchWeights, rules: AnswerRules) -> float:
    if rules.context_length is None:
        return float("inf")
    length = len(rules.prompt_ids) + weights.virtual_tokens
    if length >= rules.context_length:
        what = f"The conversation takes {length:,} tokens, and {weights.holder.name} holds {rules.context_length:,}."
        raise ModelError(what, "Start a new conversation, or remove turns from this one.")
    return rules.context_length - length


def begin_answer(
    branch: Branch,
    weights: BranchWeights,
    prompt_ids: tuple[int, ...],
    sampling: SamplingConfig,
    tokenizer: DecodingTokenizer,
    images: tuple[ImageRef, ...] = (),
) -> Answer:
    """Start an answer, limited by the model's stop tokens and its context.

    Raises:
        ModelError: If the prompt leaves no room in the context.
    """
    model = weights.holder.model
    end_ids = end_token_ids(tokenizer, model.generation_config)
    rules = AnswerRules(prompt_ids, end_ids, sampling, context_length(model), images)
    return Answer(branch, weights, rules, tokenizer)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the model's maximum positions; None if its config has none."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)

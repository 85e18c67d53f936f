"""Answer held-out rows with every branch: in batches where rows do not affect each other, else one by one."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from loratory.engine.chat.contract import Branch, JobProgress
from loratory.engine.chat.target import LoadPlan
from loratory.engine.chat.worker.answer import DecodingTokenizer, begin_answer, context_length, end_token_ids
from loratory.engine.chat.worker.static_cache import free_bytes, logits_agree
from loratory.engine.chat.worker.weights import BranchWeights, Weights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.passes.prepare import spread_evenly
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.evaluation.job import AnsweredRow, BranchAnswer, EvaluationOrder
from loratory.engine.evaluation.worker.scores import score_answer
from loratory.engine.generation.worker.batch import AnswerBatch
from loratory.engine.generation.worker.sampling import LIKELIEST, Sampling
from loratory.engine.processes.messages import CancelledRequestError, Request
from loratory.engine.training.answers import Prompt, decode, prompts_of


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its order, weights and tokenizer, and the request to report to."""

    order: EvaluationOrder
    request: Request
    weights: Callable[[], Weights]  # reads them at the first call
    tokenizer: DecodingTokenizer

    def report(self, message: str, fraction: float | None = None) -> None:
        self.end_if_stopped()
        progress = JobProgress(phase="measuring", message=message, fraction=fraction)
        self.request.progress(progress.model_dump(mode="json"))

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether the rows of a batch do not affect each other."""
        return not rounds_rows_together(self.order.plan) and not self.weights().has_virtual_tokens

    def end_if_stopped(self) -> None:
        if self.request.is_cancelled():  # cheap enough for every token
            raise CancelledRequestError


class WrittenText(NamedTuple):
    """An answer before it is scored."""

    tokens: Sequence[int]
    is_cut: bool


@dataclass(frozen=True)
class BranchWriter:
    """Writes answers with one branch of a model."""

    branch: Branch
    weights: BranchWeights
    tokenizer: DecodingTokenizer
    sampling: SamplingConfig
    between: Callable[[], None]  # called for every token; may raise to end
    copies: int = 1  # answers to each prompt

    def most_tokens(self, prompt: Prompt) -> int:
        """Return the most tokens that an answer may have, by its context and the settings."""
        longest, context = self.sampling.max_new_tokens, context_length(self.weights.holder.model)
        return longest if context is None else min(longest, context - len(prompt.ids) - self.weights.virtual_tokens)

    def write(
        self,
        prompts: Sequence[Prompt],
        choose: Sampling = LIKELIEST,
        *,
        together: bool,
        on_complete: Callable[[int], None] = lambda _: None,
    ) -> list[WrittenText]:
        """Return the answers to prompts, the longest first.

        Args:
            choose: How tokens are chosen side by side.
            together: Write side by side, unless rows affect each other.
            on_complete: Called with the number of complete answers.
        """
        if together:
            most, model = [self.most_tokens(prompt) for prompt in prompts], self.weights.holder.model
            end_ids = end_token_ids(self.tokenizer, model.generation_config)
            how = {"sampling": choose, "copies": self.copies, "between": self.between}
            ids, images = [prompt.ids for prompt in prompts], [prompt.images for prompt in prompts]
            batch = BatchedAnswers(self.weights, ids, most, end_ids, images, **how)
            if len(prompts) == 1 or batch.keeps_rows_apart():
                while not batch.is_done:
                    before = batch.complete_count
                    batch.advance()
                    if batch.complete_count > before:
                        on_complete(batch.complete_count)
                return [WrittenText(answer.tokens, answer.end is None) for answer in batch.answers]
        texts: list[WrittenText] = []
        for prompt, copy in itertools.product(prompts, range(self.copies)):
            texts.append(self._write_alone(prompt, copy))
            on_complete(len(texts))
        return texts

    def _write_alone(self, prompt: Prompt, copy: int) -> WrittenText:
        seed = None if self.sampling.seed is None else self.sampling.seed + copy
        sampling = self.sampling.model_copy(update={"seed": seed})
        how = (sampling, self.tokenizer, prompt.images)
        answer, chunk = begin_answer(self.branch, self.weights, prompt.ids, *how), None
        while not answer.is_done:
            self.between()
            chunk = answer.advance()
        return WrittenText(answer.tokens, chunk is not None and chunk.finish_reason != "eos")


def answer_rows(evaluation: Evaluation, rows: Sequence[TokenizedRow]) -> list[AnsweredRow]:
    """Answer some of the rows with every branch, in their order; rows that fill the whole context are left out."""
    weights, tokenizer, settings = evaluation.weights(), evaluation.tokenizer, evaluation.order.settings
    sampling = SamplingConfig(temperature=0, max_new_tokens=settings.max_new_tokens)
    writers = [
        BranchWriter(branch, weights.branch(branch), tokenizer, sampling, evaluation.end_if_stopped)
        for branch in weights.branch_names
    ]
    selection = spread_evenly(prompts_of(rows), settings.answered_rows)
    selection = [question for question in selection if all(writer.most_tokens(question) > 0 for writer in writers)]
    answers: list[dict[Branch, BranchAnswer]] = [{} for _ in selection]
    complete, total = 0, len(selection) * len(writers)

    def report(count: int) -> None:
        done = complete + count
        evaluation.report(f"Answering, {done:,} of {total:,} answers.", done / total)

    for batch in _batches(evaluation, selection, writers):
        prompts = [selection[number] for number in batch]
        for writer in writers:
            texts = writer.write(prompts, together=len(batch) > 1, on_complete=report)
            complete += len(batch)
            for number, text in zip(batch, texts, strict=True):
                answers[number][writer.branch] = _score(text.tokens, selection[number], tokenizer)
    return [
        AnsweredRow(
            row=question.row,
            prompt=question.text(tokenizer),
            reference=decode(question.reference, tokenizer),
            answers=own,
            images=tuple(image.digest for image in question.images),
        )
        for question, own in zip(selection, answers, strict=True)
    ]


def _batches(
    evaluation: Evaluation, questions: Sequence[Prompt], writers: Sequence[BranchWriter]
) -> Sequence[Sequence[int]]:
    lengths = [len(question.ids) for question in questions]
    if not questions or not evaluation.keeps_rows_apart:
        return [[number] for number in range(len(questions))]
    positions = max(lengths) + evaluation.order.settings.max_new_tokens
    return batches_of_prompts(lengths, min(most_rows(writer.weights, positions) for writer in writers))


def _score(tokens: Sequence[int], question: Prompt, tokenizer: DecodingTokenizer) -> BranchAnswer:
    text, reference = decode(tokens, tokenizer), decode(question.reference, tokenizer)
    return BranchAnswer(text=text, tokens=len(tokens), scores=score_answer(text, reference))


_MOST_ROWS = {"cpu": 8, "cuda": 32}  # more gain little on a CPU, which is then limited by its products
_MOST_PADDED = 1.25  # times the tokens of the prompts; with more padding, a CPU loses more than it gains
_MOST_OF_FREE_MEMORY = 0.5


class BatchedAnswers(AnswerBatch):
    """Answers of one branch to several prompts, the longest first; its model has no virtual tokens.

    `how` are the sampling, copies and `between` of an `AnswerBatch`.
    """

    def __init__(
        self,
        weights: BranchWeights,
        prompts: Sequence[tuple[int, ...]],
        most: Sequence[int],
        end_ids: frozenset[int],
        images: Sequence[Sequence[ImageRef]] = (),
        **how: Any,
    ) -> None:
        self._weights = weights
        self._last_prompt, self._last_images = prompts[-1], images[-1] if images else ()
        self._images = images
        self._moved: torch.Tensor | None = None
        cache = weights.new_cache()
        assert cache is not None  # `most_rows` requires one
        how["reads_whole"] = any(images)
        super().__init__(self._next_logits, cache, weights.holder.model.device, prompts, most, end_ids, **how)
        if self._moved is not None:
            self.move_positions(self._moved)

    @property
    def tokens(self) -> list[list[int]]:
        """The tokens of each answer so far."""
        return [answer.tokens for answer in self.answers]

    def keeps_rows_apart(self) -> bool:
        """Whether the prompt with most padding has the same logits as alone; to be called before `advance`."""
        prompt = self._last_prompt
        return logits_agree(self._logits[-1:], self._weights.logits_at(prompt, [len(prompt) - 1], self._last_images))

    def _next_logits(
        self, ids: torch.Tensor, cache: Cache, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        self._weights.holder.switch_to(self._weights.adapter)
        inputs = {"attention_mask": mask, "position_ids": positions}
        if any(self._images):  # the pass over the prompts
            of_images, self._moved = self._weights.holder.image_inputs(self._images, ids, mask)
            inputs, self._images = inputs | of_images, []
        return self._weights.holder.forward(ids, cache, **inputs)[:, -1].float()


def rounds_rows_together(plan: LoadPlan) -> bool:
    """Return whether the rows of a batch affect each other: int8 looks for outliers over the whole batch."""
    return plan.model.quantization == "int8"


def most_rows(weights: BranchWeights, positions: int, limits: Mapping[str, int] = _MOST_ROWS) -> int:
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
    return max(1, min(fitting, limits.get(model.device.type, 1)))


def batches_of_prompts(lengths: Sequence[int], rows: int, most_tokens: int = 1 << 60) -> list[list[int]]:
    """Group prompts into batches of at most `rows` and, with padding, tokens; the longest first, with little padding."""
    batches: list[list[int]] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        padded_tokens = (len(batches[-1]) + 1) * lengths[batches[-1][0]] if batches else 0
        most = min(most_tokens, _MOST_PADDED * (tokens + lengths[number]))
        if batches and len(batches[-1]) < rows and padded_tokens <= most:
            batches[-1].append(number)
        else:
            batches.append([number])
            tokens = 0
        tokens += lengths[number]
    return batches

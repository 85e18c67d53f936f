"""Answer held-out rows with every branch: in batches where rows do not affect each other, else one by one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from loratory.engine.chat.contract import Branch, JobProgress
from loratory.engine.chat.target import LoadPlan
from loratory.engine.chat.worker.answer import DecodingTokenizer, begin_answer, context_length, end_token_ids
from loratory.engine.chat.worker.static_cache import free_bytes, logits_agree
from loratory.engine.chat.worker.weights import BranchWeights, Weights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.passes.prepare import spread_evenly
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.evaluation.job import AnsweredRow, BranchAnswer, EvaluationOrder
from loratory.engine.evaluation.worker.scores import score_answer
from loratory.engine.generation.worker.batch import AnswerBatch
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


def answer_rows(evaluation: Evaluation, rows: Sequence[TokenizedRow]) -> list[AnsweredRow]:
    """Answer some of the rows with every branch, in their order; rows that fill the whole context are left out."""
    selection = spread_evenly(prompts_of(rows), evaluation.order.settings.answered_rows)
    writer = _Writer(evaluation)
    selection = [question for question in selection if writer.has_room(question)]
    return writer.answer(selection)


class _Writer:
    """Generates the answers of one evaluation, and reports how many are complete."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._tokenizer = evaluation.tokenizer
        self._branches = evaluation.weights().branch_names
        self._longest = evaluation.order.settings.max_new_tokens
        self._complete = self._total = 0

    def has_room(self, question: Prompt) -> bool:
        """Whether every branch can answer with at least one token."""
        return all(self._most(branch, question.ids) > 0 for branch in self._branches)

    def answer(self, questions: Sequence[Prompt]) -> list[AnsweredRow]:
        """Return the answers of every branch to every question, in their order."""
        self._complete, self._total = 0, len(questions) * len(self._branches)
        by_question: list[dict[Branch, BranchAnswer]] = [{} for _ in questions]
        for batch in self._batches(questions):
            together = [questions[number] for number in batch]
            for branch in self._branches:
                token_lists = self._write(branch, [question.ids for question in together])
                for number, tokens in zip(batch, token_lists, strict=True):
                    by_question[number][branch] = self._score(tokens, questions[number])
        rows = []
        for question, answers in zip(questions, by_question, strict=True):
            prompt, reference = self._tokenizer.decode(question.ids), decode(question.reference, self._tokenizer)
            rows.append(AnsweredRow(row=question.row, prompt=prompt, reference=reference, answers=answers))
        return rows

    def _batches(self, questions: Sequence[Prompt]) -> list[list[int]]:
        lengths = [len(question.ids) for question in questions]
        if not questions or not self._evaluation.keeps_rows_apart:
            return [[number] for number in range(len(questions))]
        positions = max(lengths) + self._longest
        rows = min(most_rows(self._evaluation.weights().branch(branch), positions) for branch in self._branches)
        return batches_of_prompts(lengths, rows)

    def _write(self, branch: Branch, prompts: Sequence[tuple[int, ...]]) -> list[Sequence[int]]:
        """Generate answers to prompts, the longest first: as one batch if rows do not affect each other."""
        if len(prompts) > 1:
            weights = self._evaluation.weights().branch(branch)
            end_ids = end_token_ids(self._tokenizer, weights.holder.model.generation_config)
            most = [self._most(branch, prompt) for prompt in prompts]
            answers = BatchedAnswers(weights, prompts, most, end_ids)
            if answers.keeps_rows_apart():
                return self._write_together(answers)
        return [self._write_alone(branch, prompt) for prompt in prompts]

    def _write_together(self, answers: "BatchedAnswers") -> list[Sequence[int]]:
        while not answers.is_done:
            self._evaluation.end_if_stopped()
            before = answers.complete_count
            answers.advance()
            if answers.complete_count > before:
                self._report(self._complete + answers.complete_count)
        self._complete += len(answers.tokens)
        return list(answers.tokens)

    def _write_alone(self, branch: Branch, prompt: tuple[int, ...]) -> Sequence[int]:
        sampling = SamplingConfig(temperature=0, max_new_tokens=self._longest)
        answer = begin_answer(branch, self._evaluation.weights().branch(branch), prompt, sampling, self._tokenizer)
        while not answer.is_done:
            self._evaluation.end_if_stopped()
            answer.advance()
        self._complete += 1
        self._report(self._complete)
        return answer.tokens

    def _most(self, branch: Branch, prompt: tuple[int, ...]) -> int:
        """Return the most tokens that an answer may have, by its context and the settings."""
        weights = self._evaluation.weights().branch(branch)
        most = context_length(weights.holder.model)
        room = self._longest if most is None else most - len(prompt) - weights.virtual_tokens
        return min(self._longest, room)

    def _report(self, complete: int) -> None:
        self._evaluation.report(f"Answering, {complete:,} of {self._total:,} answers.", complete / self._total)

    def _score(self, tokens: Sequence[int], question: Prompt) -> BranchAnswer:
        text, reference = decode(tokens, self._tokenizer), decode(question.reference, self._tokenizer)
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
        **how: Any,
    ) -> None:
        self._weights = weights
        self._last_prompt = prompts[-1]
        cache = weights.new_cache()
        assert cache is not None  # `most_rows` requires one
        super().__init__(self._next_logits, cache, weights.holder.model.device, prompts, most, end_ids, **how)

    @property
    def tokens(self) -> list[list[int]]:
        """The tokens of each answer so far."""
        return [answer.tokens for answer in self.answers]

    def keeps_rows_apart(self) -> bool:
        """Whether the prompt with most padding has the same logits as alone; to be called before `advance`."""
        prompt = self._last_prompt
        return logits_agree(self._logits[-1:], self._weights.logits_at(prompt, [len(prompt) - 1]))

    def _next_logits(
        self, ids: torch.Tensor, cache: Cache, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        self._weights.holder.switch_to(self._weights.adapter)
        padding = {"attention_mask": mask, "position_ids": positions}
        return self._weights.holder.forward(ids, cache, **padding)[:, -1].float()


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

"""Answers of every branch to questions of the held-out rows: side by side where the model keeps rows apart, else one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.chat.contract import Branch, Progress
from engine.chat.worker.answer import TalkingTokenizer, begin_answer, context_length, end_token_ids
from engine.chat.worker.weights import Weights
from engine.config.results import SamplingConfig
from engine.data.passes.prepare import spread_evenly
from engine.data.render.template import ChatTokenizer
from engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from engine.evaluation.job import AnsweredRow, BranchAnswer, EvaluationOrder
from engine.evaluation.worker.batched_answers import BatchedAnswers, batches_of_prompts, most_rows
from engine.evaluation.worker.scores import score_answer
from engine.processes.messages import CancelledRequestError, Request
from engine.training.failure import is_out_of_memory


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what is measured with which weights, and who asked."""

    order: EvaluationOrder
    request: Request
    weights: Weights
    tokenizer: TalkingTokenizer

    def report(self, message: str, fraction: float | None = None) -> None:
        self.end_if_stopped()
        self.request.progress(Progress(phase="measuring", message=message, fraction=fraction).model_dump(mode="json"))

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether rows that go through the model together do not change each other."""
        rounds_together = self.order.plan.model.quantization == "int8"  # looks for outliers over all that a layer gets
        return not rounds_together and not self.weights.has_virtual_tokens

    def end_if_stopped(self) -> None:
        if self.request.is_cancelled():  # cheap enough for every token
            raise CancelledRequestError


def split_at_answer(row: TokenizedRow) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the prompt of a sequence and its last trained tokens; None where nothing comes before, as in plain text."""
    trained = [index for index, label in enumerate(row.labels) if label != IGNORED_LABEL]
    if not trained:
        return None
    end = trained[-1] + 1
    start = end - 1
    while start > 0 and row.labels[start - 1] != IGNORED_LABEL:
        start -= 1
    if start == 0:
        return None
    return tuple(row.input_ids[:start]), tuple(row.input_ids[start:end])


def decode(ids: Sequence[int], tokenizer: ChatTokenizer) -> str:
    """Return tokens as a person reads them, without control tokens."""
    controls = set(tokenizer.all_special_ids)
    return tokenizer.decode([token for token in ids if token not in controls]).strip()


@dataclass(frozen=True)
class _Question:
    """What a held-out row asks, and what it has for an answer."""

    row: int
    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]


def answer_rows(evaluation: Evaluation, rows: Sequence[TokenizedRow]) -> list[AnsweredRow]:
    """Let every branch answer some of the rows, in their order; a row that fills the whole context is left out."""
    parted = [_Question(row.row, *parts) for row in rows if (parts := split_at_answer(row)) is not None]
    chosen = spread_evenly(parted, evaluation.order.settings.answered_rows)
    writer = _Writer(evaluation)
    chosen = [question for question in chosen if writer.has_room(question)]
    return writer.answer(chosen)


class _Writer:
    """Writes the answers of one evaluation, and reports how many are complete."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._tokenizer = evaluation.tokenizer
        self._branches = evaluation.weights.offered
        self._longest = evaluation.order.settings.max_new_tokens
        self._done = self._all = 0

    def has_room(self, question: _Question) -> bool:
        """Whether every branch can answer with a token at least."""
        return all(self._most(branch, question.prompt_ids) > 0 for branch in self._branches)

    def answer(self, questions: Sequence[_Question]) -> list[AnsweredRow]:
        """Return what every branch answers to every question, in their order."""
        self._done, self._all = 0, len(questions) * len(self._branches)
        found: list[dict[Branch, BranchAnswer]] = [{} for _ in questions]
        for batch in self._batches(questions):
            together = [questions[number] for number in batch]
            for branch in self._branches:
                written = self._write(branch, [question.prompt_ids for question in together])
                for number, tokens in zip(batch, written, strict=True):
                    found[number][branch] = self._scored(tokens, questions[number])
        return [
            AnsweredRow(
                row=question.row,
                prompt=self._tokenizer.decode(question.prompt_ids),
                reference=decode(question.reference_ids, self._tokenizer),
                answers=answers,
            )
            for question, answers in zip(questions, found, strict=True)
        ]

    def _batches(self, questions: Sequence[_Question]) -> list[list[int]]:
        lengths = [len(question.prompt_ids) for question in questions]
        if not questions or not self._evaluation.keeps_rows_apart:
            return [[number] for number in range(len(questions))]
        positions = max(lengths) + self._longest
        rows = min(most_rows(self._evaluation.weights.branch(branch), positions) for branch in self._branches)
        return batches_of_prompts(lengths, rows)

    def _write(self, branch: Branch, prompts: Sequence[tuple[int, ...]]) -> list[Sequence[int]]:
        """Return the tokens of answers to prompts, the longest first: together, or in halves where memory runs out."""
        if len(prompts) == 1:
            return [self._write_alone(branch, prompts[0])]
        try:
            together = self._write_together(branch, prompts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return together if together is not None else [self._write_alone(branch, prompt) for prompt in prompts]
        # Only here: the error held what was allocated.
        if self._evaluation.weights.place.device.kind == "cuda":
            torch.cuda.empty_cache()
        half = (len(prompts) + 1) // 2
        return [*self._write(branch, prompts[:half]), *self._write(branch, prompts[half:])]

    def _write_together(self, branch: Branch, prompts: Sequence[tuple[int, ...]]) -> list[Sequence[int]] | None:
        """Return the tokens of answers that are written side by side; None where one row changes another."""
        weights = self._evaluation.weights.branch(branch)
        end_ids = end_token_ids(self._tokenizer, weights.holder.model.generation_config)
        most = [self._most(branch, prompt) for prompt in prompts]
        answers = BatchedAnswers(weights, prompts, most, end_ids)
        if not answers.keeps_rows_apart():
            return None
        while not answers.done:
            self._evaluation.end_if_stopped()
            before = answers.ended
            answers.advance()
            if answers.ended > before:
                self._report(self._done + answers.ended)
        self._done += len(prompts)
        return list(answers.tokens)

    def _write_alone(self, branch: Branch, prompt: tuple[int, ...]) -> Sequence[int]:
        sampling = SamplingConfig(temperature=0, max_new_tokens=self._longest)
        answer = begin_answer(branch, self._evaluation.weights.branch(branch), prompt, sampling, self._tokenizer)
        while not answer.done:
            self._evaluation.end_if_stopped()
            answer.advance()
        self._done += 1
        self._report(self._done)
        return answer.tokens

    def _most(self, branch: Branch, prompt: tuple[int, ...]) -> int:
        """Tokens that an answer may have, beyond which its context or the order ends it."""
        weights = self._evaluation.weights.branch(branch)
        most = context_length(weights.holder.model)
        room = self._longest if most is None else most - len(prompt) - weights.virtual_tokens
        return min(self._longest, room)

    def _report(self, done: int) -> None:
        self._evaluation.report(f"Answering, {done:,} of {self._all:,} answers.", done / self._all)

    def _scored(self, tokens: Sequence[int], question: _Question) -> BranchAnswer:
        text, reference = decode(tokens, self._tokenizer), decode(question.reference_ids, self._tokenizer)
        return BranchAnswer(text=text, tokens=len(tokens), scores=score_answer(text, reference))

"""Let a model answer prompts in batches, and score the answers: for a try of rewards, and for test sets."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

import torch
from transformers import Cache

from loratory.engine.chat.contract import Branch
from loratory.engine.chat.worker.answer import DecodingTokenizer, context_length, end_token_ids
from loratory.engine.chat.worker.weights import BranchWeights, Weights
from loratory.engine.config.results import TestSet
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import ModelError
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples, TestResult, measure_test
from loratory.engine.evaluation.try_reward import BadAnswer, TryRewardResult, bad_answers, choices_of
from loratory.engine.evaluation.worker.answers import most_rows
from loratory.engine.generation.worker.batch import AnswerBatch, WrittenAnswer
from loratory.engine.generation.worker.sampling import Sampling
from loratory.engine.scoring.base import ScoredAnswer, Scorer
from loratory.engine.scoring.session import ScoringSession, total
from loratory.engine.training.answers import decode

_TIMED_SEQUENCES = 8  # whose pass is timed
_MOST_ROWS = {"cpu": 64, "cuda": 256}  # answers side by side: many short ones, unlike an evaluation's few long ones

OnAnswered = Callable[[Sequence[PromptSamples]], None]


@dataclass(eq=False)
class PromptWriter:
    """Answers prompts with one model, and has the answers scored."""

    weights: BranchWeights
    tokenizer: DecodingTokenizer
    scorers: Sequence[Scorer]
    sampling: Sampling
    copies: int  # answers to each prompt
    max_tokens: int  # of an answer
    between: Callable[[], None]  # called often; may raise to end
    tag: str = ""  # a column of the rows
    generation_seconds: float = 0.0
    scoring_seconds: float = 0.0
    sequences: list[TokenizedRow] = field(default_factory=list)  # some prompts with an answer

    def answer(
        self, rows: Sequence[TokenizedRow], session: ScoringSession, on_answered: OnAnswered = lambda _: None
    ) -> list[PromptSamples]:
        """Answer prompts, the longest first; return them in the order of the rows, each part reported as it is scored."""
        order = sorted(range(len(rows)), key=lambda number: -rows[number].length)
        positions = rows[order[0]].length + self.max_tokens
        size, by_number = (
            max(1, most_rows(self.weights, positions, _MOST_ROWS) // self.copies),
            dict[int, PromptSamples](),
        )
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            part = [rows[number] for number in numbers]
            answers = self._write(part)
            self.sequences.append(_sequence(part[0], answers[0]))
            samples = self._score(session, part, answers)
            by_number |= zip(numbers, samples, strict=True)
            on_answered(samples)
        return [by_number[number] for number in range(len(rows))]

    def _write(self, rows: Sequence[TokenizedRow]) -> list[WrittenAnswer]:
        began, model = time.perf_counter(), self.weights.holder.model
        cache, context = self.weights.new_cache(), context_length(model)
        if cache is None:
            what = f"{type(model).__name__} has no cache, so it cannot answer in batches."
            raise ModelError(what, "Choose another model.")
        room = [self.max_tokens if context is None else context - row.length for row in rows]
        if min(room) < 1:
            what = f"A prompt of {rows[0].length:,} tokens fills the whole context."
            raise ModelError(what, "Lower training.max_length, which leaves such prompts out.")
        most = [min(self.max_tokens, limit) for limit in room]
        end_ids = end_token_ids(self.tokenizer, model.generation_config)
        batch = AnswerBatch(
            partial(_next_logits, self.weights), cache, model.device, [row.input_ids for row in rows], most, end_ids,
            sampling=self.sampling, copies=self.copies, between=self.between,
        )  # fmt: skip
        while not batch.is_done:
            batch.advance()
        self.generation_seconds += time.perf_counter() - began
        return batch.answers

    def _score(
        self, session: ScoringSession, rows: Sequence[TokenizedRow], token_lists: Sequence[WrittenAnswer]
    ) -> list[PromptSamples]:
        began, copies = time.perf_counter(), self.copies
        texts = [decode(answer.tokens, self.tokenizer) for answer in token_lists]
        verdicts = session.score([to_score(rows[n // copies], text) for n, text in enumerate(texts)], self.between)
        self.scoring_seconds += time.perf_counter() - began
        answers = [
            AnswerSample.from_verdicts(text, len(answer.tokens), verdict, self.scorers, is_cut=answer.end is None)
            for text, answer, verdict in zip(texts, token_lists, verdicts, strict=True)
        ]
        return [
            PromptSamples(
                row=row.row, prompt=to_score(row, "").prompt, reference=_reference(row),
                answers=tuple(answers[n * copies : (n + 1) * copies]),
                tag=str(to_score(row, "").columns.get(self.tag, "")) if self.tag else "",
            )
            for n, row in enumerate(rows)
        ]  # fmt: skip


def try_rewards(
    training: TrainingConfig,
    weights: BranchWeights,
    tokenizer: DecodingTokenizer,
    rows: Sequence[TokenizedRow],
    on_answered: OnAnswered,
    between: Callable[[], None],
) -> TryRewardResult:
    """Answer prompts as a run does before its first step, score the answers and bad ones, and time it."""
    generator = torch.Generator(weights.holder.model.device).manual_seed(training.seed)
    sampling, scorers, copies = (
        Sampling(training.temperature, training.top_p, generator),
        training.rewards,
        training.num_generations,
    )
    writer = PromptWriter(weights, tokenizer, scorers, sampling, copies, training.max_completion_length, between)
    with ScoringSession(scorers) as session:
        prompts = writer.answer(rows, session, on_answered)
        bad = _score_bad_answers(session, rows, training, between)
    sequences = writer.sequences[:_TIMED_SEQUENCES]
    weights.batch_token_losses(sequences)  # the first pass takes longer
    began = time.perf_counter()
    weights.batch_token_losses(sequences)
    forward_seconds = (time.perf_counter() - began) / len(sequences)
    return TryRewardResult(
        prompts=tuple(prompts),
        bad_answers=tuple(bad),
        scorers=tuple(scorer.label for scorer in scorers),
        highest=sum(max(0.0, scorer.weight) for scorer in scorers),
        generation_seconds=writer.generation_seconds,
        scoring_seconds=writer.scoring_seconds,
        forward_seconds=forward_seconds * len(rows) * copies,
    )


def _score_bad_answers(
    session: ScoringSession, rows: Sequence[TokenizedRow], training: TrainingConfig, between: Callable[[], None]
) -> list[BadAnswer]:
    references, of_rows = [_reference(row) for row in rows], []
    for row, reference in zip(rows, references, strict=True):
        facts = to_score(row, "")
        choices = choices_of(facts.columns, references, training.rewards)
        of_rows.append(bad_answers(facts.prompt, reference, choices, training.max_completion_length))
    names = list(of_rows[0])
    to_rate = [to_score(row, answers[name]) for row, answers in zip(rows, of_rows, strict=True) for name in names]
    rewards = [total(verdict, training.rewards) for verdict in session.score(to_rate, between)]
    means = [[reward for reward in rewards[number :: len(names)] if reward is not None] for number in range(len(names))]
    return [
        BadAnswer(name=name, text=of_rows[0][name][:2000], reward=fmean(known) if known else None)
        for name, known in zip(names, means, strict=True)
    ]


def answer_test(
    test: TestSet,
    weights: Weights,
    tokenizer: DecodingTokenizer,
    rows: Sequence[TokenizedRow],
    on_answered: OnAnswered,
    between: Callable[[], None],
) -> TestResult:
    """Let every branch answer the prompts of a test set."""
    by_branch: dict[Branch, list[PromptSamples]] = {}
    with ScoringSession(test.scorers) as session:
        for branch in weights.branch_names:
            own = weights.branch(branch)
            generator = torch.Generator(own.holder.model.device).manual_seed(0)
            sampling = Sampling(test.temperature, 1.0, generator) if test.samples > 1 else Sampling()
            writer = PromptWriter(
                own, tokenizer, test.scorers, sampling, test.samples, test.max_new_tokens, between, test.tag
            )
            by_branch[branch] = writer.answer(rows, session, on_answered)
    return measure_test(test, by_branch)


def _next_logits(
    weights: BranchWeights, ids: torch.Tensor, cache: Cache, mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    weights.holder.switch_to(weights.adapter)
    return weights.holder.forward(ids, cache, attention_mask=mask, position_ids=positions)[:, -1].float()


def to_score(row: TokenizedRow, answer: str) -> ScoredAnswer:
    assert row.prompt is not None  # as the objective's rows have it
    return ScoredAnswer(row.prompt.text, answer, row.prompt.columns)


def _reference(row: TokenizedRow) -> str:
    value = to_score(row, "").columns.get("answer", "")
    return value if isinstance(value, str) else str(value)


def _sequence(row: TokenizedRow, answer: WrittenAnswer) -> TokenizedRow:
    """Return a prompt with its answer, as it is trained on."""
    tokens = answer.tokens or row.input_ids[-1:]
    ids = [*row.input_ids, *tokens]
    return TokenizedRow(row.row, 0, ids, [-100] * row.length + tokens)

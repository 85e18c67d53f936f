"""Let a model answer prompts in batches, and score the answers: for a try of rewards, and for test sets."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch

from loratory.engine.chat.contract import Branch
from loratory.engine.chat.worker.answer import DecodingTokenizer
from loratory.engine.chat.worker.weights import Weights
from loratory.engine.config.results import SamplingConfig, TestSet
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import ModelError
from loratory.engine.evaluation.general_text import OPENINGS, REPLAY_COPIES, REPLAY_TOKENS
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples, TestResult, measure_test
from loratory.engine.evaluation.try_reward import BadAnswer, TryRewardResult, bad_answers, choices_of
from loratory.engine.evaluation.worker.answers import BranchWriter, WrittenText, most_rows, rounds_rows_together
from loratory.engine.generation.worker.sampling import Sampling
from loratory.engine.scoring.base import ScoredAnswer, Scorer
from loratory.engine.scoring.session import ScoringSession, total
from loratory.engine.training.answers import Prompt, decode, prompts_of

_TIMED_SEQUENCES = 8  # whose pass is timed
_MOST_ROWS = {"cpu": 64, "cuda": 256}  # answers side by side: many short ones, unlike an evaluation's few long ones

_SENTENCE = re.compile(r".*[.!?;}>。！？।]", re.DOTALL)

OnAnswered = Callable[[Sequence[PromptSamples]], None]


@dataclass(eq=False)
class PromptWriter:
    """Answers prompts with one branch of a model, and has the answers scored."""

    weights: Weights
    branch: Branch
    tokenizer: DecodingTokenizer
    scorers: Sequence[Scorer]
    sampling: SamplingConfig
    copies: int  # answers to each prompt
    between: Callable[[], None]  # called often; may raise to end
    tag: str = ""  # a column of the rows
    generation_seconds: float = 0.0
    scoring_seconds: float = 0.0
    sequences: list[TokenizedRow] = field(default_factory=list)  # some prompts with an answer

    def answer(
        self, rows: Sequence[TokenizedRow], session: ScoringSession, on_answered: OnAnswered = lambda _: None
    ) -> list[PromptSamples]:
        """Answer prompts, the longest first; return them in the order of the rows, each part reported as it is scored."""
        order, by_number = sorted(range(len(rows)), key=lambda number: -rows[number].length), dict[int, PromptSamples]()
        positions, own = rows[order[0]].length + self.sampling.max_new_tokens, self.weights.branch(self.branch)
        writer = BranchWriter(self.branch, own, self.tokenizer, self.sampling, self.between, self.copies)
        if writer.most_tokens(prompts_of([rows[order[0]]])[0]) < 1:
            what = f"A prompt of {rows[order[0]].length:,} tokens fills the whole context."
            raise ModelError(what, "Lower training.max_length, which leaves such prompts out.")
        at_once = 1 if rounds_rows_together(self.weights.plan) else most_rows(own, positions, _MOST_ROWS)
        size = max(1, at_once // self.copies)
        generator = torch.Generator(own.holder.model.device).manual_seed(self.sampling.seed or 0)
        choose = Sampling(self.sampling.temperature, self.sampling.top_p, generator)
        for start in range(0, len(order), size):
            numbers, began = order[start : start + size], time.perf_counter()
            part = [rows[number] for number in numbers]
            texts = writer.write(prompts_of(part), choose, together=at_once > 1)
            self.generation_seconds += time.perf_counter() - began
            self.sequences.append(_sequence(part[0], texts[0].tokens))
            samples = self._score(session, part, texts)
            by_number |= zip(numbers, samples, strict=True)
            on_answered(samples)
        return [by_number[number] for number in range(len(rows))]

    def _score(
        self, session: ScoringSession, rows: Sequence[TokenizedRow], answers: Sequence[WrittenText]
    ) -> list[PromptSamples]:
        began, copies = time.perf_counter(), self.copies
        texts = [decode(answer.tokens, self.tokenizer) for answer in answers]
        verdicts = session.score([to_score(rows[n // copies], text) for n, text in enumerate(texts)], self.between)
        self.scoring_seconds += time.perf_counter() - began
        samples = [
            AnswerSample.from_verdicts(text, len(answer.tokens), verdict, self.scorers, is_cut=answer.is_cut)
            for text, answer, verdict in zip(texts, answers, verdicts, strict=True)
        ]
        return [
            PromptSamples(
                row=row.row, prompt=to_score(row, "").prompt, reference=_reference(row),
                images=tuple(image.digest for image in row.images),
                answers=tuple(samples[n * copies : (n + 1) * copies]),
                tag=str(to_score(row, "").columns.get(self.tag, "")) if self.tag else "",
            )
            for n, row in enumerate(rows)
        ]  # fmt: skip


def try_rewards(
    training: TrainingConfig,
    weights: Weights,
    tokenizer: DecodingTokenizer,
    rows: Sequence[TokenizedRow],
    on_answered: OnAnswered,
    between: Callable[[], None],
) -> TryRewardResult:
    """Answer prompts as a run does before its first step, score the answers and bad ones, and time it."""
    scorers, copies, branch = training.rewards, training.num_generations, weights.branch_names[-1]
    sampling = SamplingConfig(
        temperature=training.temperature, top_p=training.top_p, seed=training.seed,
        max_new_tokens=training.max_completion_length,
    )  # fmt: skip
    writer = PromptWriter(weights, branch, tokenizer, scorers, sampling, copies, between)
    with ScoringSession(scorers) as session:
        prompts = writer.answer(rows, session, on_answered)
        bad = _score_bad_answers(session, rows, training, between)
    own, sequences = weights.branch(branch), writer.sequences[:_TIMED_SEQUENCES]
    own.batch_token_losses(sequences)  # the first pass takes longer
    began = time.perf_counter()
    own.batch_token_losses(sequences)
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
            temperature = test.temperature if test.samples > 1 else 0.0
            sampling = SamplingConfig(temperature=temperature, top_p=1.0, seed=0, max_new_tokens=test.max_new_tokens)
            writer = PromptWriter(weights, branch, tokenizer, test.scorers, sampling, test.samples, between, test.tag)
            by_branch[branch] = writer.answer(rows, session, on_answered)
    return measure_test(test, by_branch)


def write_replay(weights: Weights, tokenizer: DecodingTokenizer, report: Callable[[str, float], None]) -> list[str]:
    """Let the base model continue `OPENINGS`, each several times; return the texts."""
    own, texts = weights.branch("base"), dict[str, None]()
    prompts = [Prompt(number, tuple(tokenizer(text)["input_ids"])) for number, text in enumerate(OPENINGS)]
    prompts.sort(key=lambda prompt: -len(prompt.ids))
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, seed=0, max_new_tokens=REPLAY_TOKENS)
    writer = BranchWriter("base", own, tokenizer, sampling, lambda: None, REPLAY_COPIES)
    positions = len(prompts[0].ids) + REPLAY_TOKENS
    at_once = 1 if rounds_rows_together(weights.plan) else most_rows(own, positions, _MOST_ROWS)
    choose = Sampling(1.0, 1.0, torch.Generator(own.holder.model.device).manual_seed(0))
    for start in range(0, len(prompts), size := max(1, at_once // REPLAY_COPIES)):
        report("The base model writes general rows.", start / len(prompts))
        part = prompts[start : start + size]
        for number, answer in enumerate(writer.write(part, choose, together=at_once > 1)):
            text = decode([*part[number // REPLAY_COPIES].ids, *answer.tokens], tokenizer)
            # One that is cut ends with its last sentence, as rows end with the token that ends a text.
            end = _SENTENCE.match(text) if answer.is_cut else None
            texts[end[0] if end is not None else text] = None
    return list(texts)


def to_score(row: TokenizedRow, answer: str) -> ScoredAnswer:
    assert row.prompt is not None  # as the objective's rows have it
    return ScoredAnswer(row.prompt.text, answer, row.prompt.columns)


def _reference(row: TokenizedRow) -> str:
    return str(to_score(row, "").columns.get("answer", ""))


def _sequence(row: TokenizedRow, answer: Sequence[int]) -> TokenizedRow:
    """Return a prompt with its answer, as it is trained on."""
    tokens = [*answer] or row.input_ids[-1:]
    ids = [*row.input_ids, *tokens]
    return TokenizedRow(row.row, 0, ids, [-100] * row.length + tokens, images=row.images)

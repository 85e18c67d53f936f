"""Scored answers to prompts, and tests: what base, start and tuned model score on prompts apart from the training rows."""

import random
from collections.abc import Iterator, Mapping, Sequence
from math import comb
from statistics import fmean
from typing import Self

from pydantic import Field

from loratory.engine.chat.contract import Branch, FrozenModel
from loratory.engine.config.results import TestSet
from loratory.engine.evaluation.blind_test import SIGNIFICANCE_LEVEL, sign_test
from loratory.engine.scoring.base import Scorer, Verdict
from loratory.engine.scoring.session import total

_PASSING = 0.5  # of every scorer, from which an answer passes
_EQUAL = 1e-6  # rewards closer than this are equal
_RESAMPLES = 1000
_TAIL = 0.025  # of the resampled means, on each side of a 95% interval


class AnswerSample(FrozenModel):
    """An answer; verdicts are those of the scorers, in their order. It passes with at least half of each score."""

    text: str
    tokens: int
    is_cut: bool  # at the token limit
    verdicts: tuple[Verdict, ...]
    reward: float | None  # None if no scorer gave a score
    passes: bool

    @classmethod
    def from_verdicts(
        cls, text: str, tokens: int, verdicts: tuple[Verdict, ...], scorers: Sequence[Scorer], *, is_cut: bool
    ) -> Self:
        """Return an answer with the total of its verdicts; a penalty does not decide whether it passes."""
        gains = [verdict.score or 0.0 for verdict, scorer in zip(verdicts, scorers, strict=True) if scorer.weight > 0]
        passes = all(score >= _PASSING for score in gains)
        reward = total(verdicts, scorers)
        return cls(text=text, tokens=tokens, is_cut=is_cut, verdicts=verdicts, reward=reward, passes=passes)


class PromptSamples(FrozenModel):
    """A prompt with its answers."""

    row: int  # of the dataset, from 0
    prompt: str
    reference: str
    answers: tuple[AnswerSample, ...]
    tag: str = ""  # of the row, by which scores are grouped
    images: tuple[str, ...] = ()  # digests of those of the prompt, in the media store

    @property
    def rewards(self) -> list[float]:
        """The rewards of the answers that have one."""
        return [answer.reward for answer in self.answers if answer.reward is not None]

    @property
    def score(self) -> float:
        """The mean reward; an answer without a score counts as 0, or a failing scorer would look like a gain."""
        return fmean(answer.reward or 0.0 for answer in self.answers)

    @property
    def is_tied(self) -> bool:
        """Whether its answers have the same reward, so training learns nothing from them."""
        rewards = self.rewards or [0.0]
        return max(rewards) - min(rewards) < _EQUAL


class BranchScore(FrozenModel):
    """What one model scores on a test set."""

    score: float
    interval: tuple[float, float]  # 95%, by bootstrap over the prompts
    pass_at_1: float
    pass_at_k: float  # at least one of k answers passes
    by_tag: dict[str, float] = Field(default_factory=dict)
    missing_scores: int = 0  # answers without a score

    @property
    def text(self) -> str:
        """The score with its interval."""
        return f"{self.score:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


class TestResult(FrozenModel):
    """What base, start and tuned model score on one test set."""

    __test__ = False  # for pytest

    name: str
    samples: int  # answers to each prompt
    scorers: tuple[str, ...]  # their labels
    branches: dict[Branch, BranchScore]
    flips: tuple[int, int] | None = None  # prompts that pass in the tuned model alone, and in the base alone
    p: float | None = None  # McNemar's, exact: whether that could be chance
    # Of the prompts, those with the worst tuned answers first.
    prompts: dict[Branch, tuple[PromptSamples, ...]]

    @property
    def p_words(self) -> str:
        """McNemar's p with three decimals; empty where there is none."""
        return "" if self.p is None else f"{self.p:.3f}" if self.p >= 0.001 else "below 0.001"


def measure_test(test: TestSet, by_branch: Mapping[Branch, Sequence[PromptSamples]]) -> TestResult:
    """Compute scores, intervals and the comparison of base and tuned; prompts are in the same order for all branches."""
    flips = None
    if {"base", "tuned"} <= by_branch.keys():
        sides = list(
            zip(*([_passes(prompt) for prompt in by_branch[branch]] for branch in ("tuned", "base")), strict=True)
        )
        flips = (sides.count((True, False)), sides.count((False, True)))
    last = by_branch.get("tuned") or by_branch["base"]
    order = sorted(range(len(last)), key=lambda number: (last[number].score, last[number].row))
    return TestResult(
        name=test.title,
        samples=test.samples,
        scorers=tuple(scorer.label for scorer in test.scorers),
        branches={branch: _branch_score(prompts) for branch, prompts in by_branch.items()},
        flips=flips,
        p=sign_test(*flips) if flips is not None else None,
        prompts={branch: tuple(prompts[number] for number in order) for branch, prompts in by_branch.items()},
    )


def _branch_score(prompts: Sequence[PromptSamples]) -> BranchScore:
    tags = sorted({prompt.tag for prompt in prompts if prompt.tag})
    counts = [(len(prompt.answers), sum(answer.passes for answer in prompt.answers)) for prompt in prompts]
    most = max(count for count, _ in counts)
    scores = [prompt.score for prompt in prompts]
    return BranchScore(
        score=fmean(scores),
        interval=bootstrap(scores),
        pass_at_1=fmean(pass_at_k(count, passing, 1) for count, passing in counts),
        pass_at_k=fmean(pass_at_k(count, passing, most) for count, passing in counts),
        by_tag={tag: fmean(prompt.score for prompt in prompts if prompt.tag == tag) for tag in tags},
        missing_scores=sum(answer.reward is None for prompt in prompts for answer in prompt.answers),
    )


def _passes(prompt: PromptSamples) -> bool:
    """Return whether most of the answers to a prompt pass."""
    return sum(answer.passes for answer in prompt.answers) * 2 > len(prompt.answers)


def pass_at_k(count: int, passing: int, k: int) -> float:
    """Return the probability that at least one of k answers, drawn from `count`, passes.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
    """
    return 1.0 - comb(count - passing, k) / comb(count, k)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of a mean, by the percentiles of resampled means.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    chance = random.Random(seed)  # noqa: S311 - statistics, no secret
    means = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return means[round(_TAIL * _RESAMPLES)], means[round((1 - _TAIL) * _RESAMPLES) - 1]


def describe_test(test: TestResult, names: Mapping[Branch, str]) -> Iterator[str]:
    """Yield sentences on a test: the scores with their intervals, and what turned."""
    scores = (f"{names[branch]} {figures.text}" for branch, figures in test.branches.items())
    count = len(next(iter(test.prompts.values())))
    yield f"{test.name}, {count:,} prompts: {', '.join(scores)}; in brackets the 95% interval."
    if test.flips is not None and test.p is not None:
        right, wrong = test.flips
        sure = "not chance" if test.p < SIGNIFICANCE_LEVEL else "which may be chance"
        yield f"{right:,} turned right and {wrong:,} turned wrong, {sure} (McNemar's p {test.p_words})."
    for branch, figures in test.branches.items():
        if figures.missing_scores:
            yield f"{figures.missing_scores:,} answers of {names[branch]} have no score, and count as 0."

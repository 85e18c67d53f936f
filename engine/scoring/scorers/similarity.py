"""Scorers of similar wording: ROUGE-L and chrF."""

import functools
import re
from typing import Any, ClassVar, Literal

from loratory.engine.scoring.base import Example, NoScoreError, ReferenceScorer

_WORD = re.compile(r"[^\W_]+")
_MOST_PAIRS = 25_000_000  # of words that are compared, some seconds


class _WordsOfAnyScript:
    """Splits words of any script in lower case; rouge-score's own tokenizer keeps only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_WordsOfAnyScript())


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def rouge_l(answer: str, reference: str) -> float:
    """Return F1 of the longest common subsequence of words.

    Source: rouge-score (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).
    """
    return float(_rouge().score(target=reference, prediction=answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """Return F2 of character n-grams up to six, from 0 to 1.

    Source: sacrebleu's chrF2 (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation").
    """
    return float(_chrf().sentence_score(answer, [reference]).score) / 100  # sacrebleu counts to 100


class RougeL(ReferenceScorer):
    """Common words in the same order."""

    label, sentence = "ROUGE-L", "How much of the wording is that of the reference, by common words in the same order."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("the dog sat", 2 / 3, {"answer": "the cat sat"}),
        Example("世界 こんにちは", 0.5, {"answer": "こんにちは 世界"}),
        Example("", 0.0, {"answer": "the cat sat"}),
        Example("cat " * 100, 2 / 103, {"answer": "the cat sat"}),
        Example("cat " * 20_000, None, {"answer": "cat " * 20_000}),
    )
    scorer: Literal["rouge_l"]

    def compare(self, answer: str, reference: str) -> float:
        """Return ROUGE-L; a NoScoreError where that would take long."""
        pairs = len(_WORD.findall(answer)) * len(_WORD.findall(reference))
        if pairs > _MOST_PAIRS:
            raise NoScoreError(f"Answer and reference have {pairs:,} pairs of words; {_MOST_PAIRS:,} is the most.")
        return rouge_l(answer, reference)


class ChrF(ReferenceScorer):
    """Common groups of characters."""

    label, sentence = "chrF", "How much of the wording is that of the reference, by groups of up to six characters."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("the cat sat", 1.0, {"answer": "the cat sat"}),
        Example("xyz", 0.0, {"answer": "the cat sat"}),
        Example("", 0.0, {"answer": "the cat sat"}),
        Example("no", 1.0, {"answer": ["yes", "no"]}),
        Example("yes", None, {}),
    )
    scorer: Literal["chrf"]

    def compare(self, answer: str, reference: str) -> float:
        """Return chrF."""
        return chrf(answer, reference)

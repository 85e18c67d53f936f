"""Scorers of similar wording: ROUGE-L and chrF."""

import re
from types import SimpleNamespace
from typing import Literal

from loratory.engine.scoring.base import Example, NoScoreError, ReferenceScorer

_WORD = re.compile(r"[^\W_]+")
_MOST_PAIRS = 25_000_000  # of words that are compared, some seconds
_CAT = {"answer": "the cat sat"}


def rouge_l(answer: str, reference: str) -> float:
    """Return F1 of the longest common subsequence of words, in lower case and of any script.

    Source: rouge-score (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = SimpleNamespace(tokenize=lambda text: _WORD.findall(text.lower()))  # its own knows a to z and digits
    scores = RougeScorer(["rougeL"], tokenizer=tokenizer).score(target=reference, prediction=answer)
    return float(scores["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """Return F2 of character n-grams up to six, from 0 to 1.

    Source: sacrebleu's chrF2 (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation").
    """
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [reference]).score) / 100  # sacrebleu counts to 100


class RougeL(ReferenceScorer):
    """Common words in the same order."""

    label, sentence = "ROUGE-L", "How much of the wording is that of the reference, by common words in the same order."
    examples = (Example("the dog sat", 2 / 3, _CAT), Example("sat cat the", 1 / 3, _CAT), Example("", 0.0, _CAT))
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
    examples = (Example("the cat sat", 1.0, _CAT), Example("xyz", 0.0, _CAT), Example("", 0.0, _CAT))
    scorer: Literal["chrf"]

    def compare(self, answer: str, reference: str) -> float:
        """Return chrF."""
        return chrf(answer, reference)

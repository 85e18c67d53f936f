"""How near an answer comes to its reference; by the libraries that the field reports its scores with. Heavy: they bring nltk."""

import re
from collections.abc import Sequence
from functools import lru_cache

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from engine.evaluation.contract import AnswerScores, MeanScores

_WORD = re.compile(r"[^\W_]+")


class _WordsOfAnyScript:
    """Words in lower case, as rouge-score's own tokenizer has them, which keeps only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def score_answer(answer: str, reference: str) -> AnswerScores:
    """Compare one answer with its reference."""
    return AnswerScores(
        exact=" ".join(answer.split()) == " ".join(reference.split()),
        rouge_l=rouge_l(answer, reference),
        chrf=chrf(answer, reference),
    )


def mean_scores(scores: Sequence[AnswerScores]) -> MeanScores:
    """Means over rows."""
    count = max(len(scores), 1)
    return MeanScores(
        exact=sum(score.exact for score in scores) / count,
        rouge_l=sum(score.rouge_l for score in scores) / count,
        chrf=sum(score.chrf for score in scores) / count,
        rows=len(scores),
    )


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, from 0 to 1.

    Source: rouge-score (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).
    """
    return float(_rouge().score(target=reference, prediction=answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """F2 of character n-grams up to six, from 0 to 1; sacrebleu itself counts to 100.

    Source: sacrebleu's chrF2 (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation").
    """
    return float(_chrf().sentence_score(answer, [reference]).score) / 100


@lru_cache(maxsize=1)
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_WordsOfAnyScript())


@lru_cache(maxsize=1)
def _chrf() -> CHRF:
    return CHRF()

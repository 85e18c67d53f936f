"""Scores of an answer against its reference."""

import re
from collections.abc import Sequence
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from loratory.engine.evaluation.job import AnswerScores, MeanScores

_WORD = re.compile(r"[^\W_]+")


class _WordsOfAnyScript:
    """Splits words of any script in lower case; rouge-score's own tokenizer keeps only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


_ROUGE = RougeScorer(["rougeL"], tokenizer=_WordsOfAnyScript())
_CHRF = CHRF()


def score_answer(answer: str, reference: str) -> AnswerScores:
    """Score an answer against its reference.

    `rouge_l` is F1 of the longest common subsequence of words, `chrf` F2 of character n-grams up to six.

    Source: rouge-score (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3); sacrebleu's chrF2
    (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation").
    """
    return AnswerScores(
        exact=answer.split() == reference.split(),
        rouge_l=float(_ROUGE.score(target=reference, prediction=answer)["rougeL"].fmeasure),
        chrf=float(_CHRF.sentence_score(answer, [reference]).score) / 100,  # sacrebleu counts to 100
    )


def mean_scores(scores: Sequence[AnswerScores]) -> MeanScores:
    """Return means over rows."""
    means = {name: fmean(getattr(score, name) for score in scores) for name in AnswerScores.model_fields}
    return MeanScores(rows=len(scores), **means)

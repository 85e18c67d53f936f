"""Scores of an answer against its reference."""

from collections.abc import Sequence
from statistics import fmean

from loratory.engine.evaluation.job import AnswerScores, MeanScores
from loratory.engine.scoring.scorers.text import chrf, rouge_l


def score_answer(answer: str, reference: str) -> AnswerScores:
    """Score an answer against its reference."""
    return AnswerScores(
        exact=answer.split() == reference.split(), rouge_l=rouge_l(answer, reference), chrf=chrf(answer, reference)
    )


def mean_scores(scores: Sequence[AnswerScores]) -> MeanScores:
    """Return means over rows."""
    means = {name: fmean(getattr(score, name) for score in scores) for name in AnswerScores.model_fields}
    return MeanScores(rows=len(scores), **means)

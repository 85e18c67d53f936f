"""How near an answer comes to its reference."""

import re
from collections import Counter
from collections.abc import Sequence

from engine.evaluation.contract import AnswerScores, MeanScores

_WORD = re.compile(r"[^\W_]+")

_CHRF_ORDERS = 6
_CHRF_BETA = 2  # recall counts twice as much as precision


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

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3; words in lower case, as Google's
    rouge-score has them, but of any script.
    """
    said, wanted = _words(answer), _words(reference)
    if not said or not wanted:
        return 0.0
    common = _longest_common_subsequence(said, wanted)
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def chrf(answer: str, reference: str) -> float:
    """F2 of character n-grams up to six, from 0 to 1.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; white space left out, orders that
    either text is too short for left out, as sacrebleu has it.
    """
    said, wanted = "".join(answer.split()), "".join(reference.split())
    precisions: list[float] = []
    recalls: list[float] = []
    for order in range(1, _CHRF_ORDERS + 1):
        ours, theirs = _ngrams(said, order), _ngrams(wanted, order)
        if not ours or not theirs:
            continue
        common = (ours & theirs).total()
        precisions.append(common / ours.total())
        recalls.append(common / theirs.total())
    if not precisions or not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    weight = _CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if word == other else max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]

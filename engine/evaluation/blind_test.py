"""The blind test: a person prefers one of two answers without knowing which model wrote it.

Judgements are stored with the run as JSON lines, so several people can judge at the same time.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from loratory.engine.chat.contract import Branch, FrozenModel
from loratory.engine.files import append_model, read_models

Verdict = Literal["left", "right", "equal", "neither"]

# p-value below which a difference is called clear.
SIGNIFICANCE_LEVEL = 0.05


class Pair(FrozenModel):
    """Two answers to one prompt, in the order in which they are shown."""

    prompt: str
    reference: str = ""  # empty if there is none
    left: Branch
    right: Branch
    answers: dict[Branch, str]

    @property
    def same_words(self) -> bool:
        """Whether both answers have the same words."""
        return " ".join(self.answers[self.left].split()) == " ".join(self.answers[self.right].split())


class Judgement(FrozenModel):
    """A person's verdict on a pair."""

    pair: Pair
    verdict: Verdict
    time: AwareDatetime
    by: str = ""  # the person's name on this machine

    @property
    def winner(self) -> Branch | None:
        """The branch whose answer was chosen; None if neither side won."""
        return {"left": self.pair.left, "right": self.pair.right}.get(self.verdict)


class BlindCounts(FrozenModel):
    """Counts of the judgements about two branches."""

    first: Branch
    second: Branch
    first_preferred: int = 0
    second_preferred: int = 0
    equal: int = 0
    neither: int = 0

    @property
    def total(self) -> int:
        """Number of judgements."""
        return self.decisive + self.equal + self.neither

    @property
    def decisive(self) -> int:
        """Judgements in which one side won."""
        return self.first_preferred + self.second_preferred

    @property
    def p_value(self) -> float:
        """The p-value of `sign_test`."""
        return sign_test(self.first_preferred, self.second_preferred)


def draw_pair(prompt: str, reference: str, answers: dict[Branch, str], draw: random.Random) -> Pair:
    """Return the answers of two branches in random order."""
    first, second = answers
    left, right = (first, second) if draw.random() < 0.5 else (second, first)
    return Pair(prompt=prompt, reference=reference, left=left, right=right, answers=answers)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact binomial sign test.

    Ties are left out (Dixon and Mood 1946). The p-value is 1 without wins and losses.

    Source: Conover 1999, "Practical Nonparametric Statistics", section 3.4.
    """
    pairs = wins + losses
    fewer = min(wins, losses)
    if 2 * fewer == pairs:
        return 1.0
    tail = sum(math.comb(pairs, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << pairs))


def count_judgements(judgements: Iterable[Judgement], first: Branch, second: Branch) -> BlindCounts:
    """Count the judgements about exactly these two branches."""
    counts: Counter[str] = Counter(
        judgement.winner or judgement.verdict
        for judgement in judgements
        if {judgement.pair.left, judgement.pair.right} == {first, second}
    )
    return BlindCounts(
        first=first,
        second=second,
        first_preferred=counts[first],
        second_preferred=counts[second],
        equal=counts["equal"],
        neither=counts["neither"],
    )


def judgements_file(run: Path, checkpoint: str | None, against: str | None = None) -> Path:
    """Return the file of judgements: one for each checkpoint, and one for each run that it was compared with."""
    name = f"blind-test-{checkpoint or 'final'}"
    return run / "evaluations" / (f"{name}.jsonl" if against is None else f"{name}-against-{against}.jsonl")


def save_judgement(file: Path, judgement: Judgement) -> None:
    """Append a judgement.

    Raises:
        StorageError: If it cannot be written.
    """
    append_model(file, judgement, "The judgement could not be saved", "Free some space, or check the run's folder.")


def read_judgements(file: Path) -> tuple[Judgement, ...]:
    """Return all judgements, oldest first; damaged lines are skipped."""
    return read_models(file, Judgement)

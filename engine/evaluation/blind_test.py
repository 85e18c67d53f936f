"""The blind test: which of two answers a person prefers without knowing whose they are, and how sure the tally is.

Judgements are kept with the run, one JSON line each, so several people can judge at the same time.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from engine.chat.contract import Branch, Value
from engine.files import append_model, read_models

Verdict = Literal["left", "right", "equal", "neither"]

# Below this chance that a coin would do the same, the difference is called clear.
CLEAR_CHANCE = 0.05


class Pair(Value):
    """Two answers to one prompt, in the order in which they are shown."""

    prompt: str
    reference: str = ""  # "" where the right answer is unknown
    left: Branch
    right: Branch
    answers: dict[Branch, str]

    @property
    def same_words(self) -> bool:
        """Whether there is nothing to choose between."""
        return " ".join(self.answers[self.left].split()) == " ".join(self.answers[self.right].split())


class Judgement(Value):
    """What a person chose."""

    pair: Pair
    verdict: Verdict
    time: AwareDatetime
    by: str = ""  # the person's name on this machine

    @property
    def preferred(self) -> Branch | None:
        """Whose answer was chosen; None where neither side won."""
        return {"left": self.pair.left, "right": self.pair.right}.get(self.verdict)


class BlindTally(Value):
    """All judgements about two branches, counted."""

    first: Branch
    second: Branch
    first_preferred: int = 0
    second_preferred: int = 0
    equal: int = 0
    neither: int = 0

    @property
    def judged(self) -> int:
        """Pairs that were judged."""
        return self.decided + self.equal + self.neither

    @property
    def decided(self) -> int:
        """Pairs in which one side won."""
        return self.first_preferred + self.second_preferred

    @property
    def chance(self) -> float:
        """How probably a fair coin would decide at least as one-sidedly; see `sign_test`."""
        return sign_test(self.first_preferred, self.second_preferred)


def draw_pair(prompt: str, reference: str, answers: dict[Branch, str], draw: random.Random) -> Pair:
    """Put the answers of two branches into an order that is drawn for every prompt; `draw` is random but in tests."""
    first, second = answers
    left, right = (first, second) if draw.random() < 0.5 else (second, first)
    return Pair(prompt=prompt, reference=reference, left=left, right=right, answers=answers)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided binomial sign test: the chance of a result at least this one-sided if both are equally good.

    Ties are left out, as Dixon and Mood (1946) have it. 1 where nothing was decided.

    Source: Conover 1999, "Practical Nonparametric Statistics", section 3.4.
    """
    decided = wins + losses
    fewer = min(wins, losses)
    if 2 * fewer == decided:
        return 1.0
    tail = sum(math.comb(decided, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << decided))


def count_judgements(judgements: Iterable[Judgement], first: Branch, second: Branch) -> BlindTally:
    """Count the judgements about exactly these two branches."""
    counts: Counter[str] = Counter(
        judgement.preferred or judgement.verdict
        for judgement in judgements
        if {judgement.pair.left, judgement.pair.right} == {first, second}
    )
    return BlindTally(
        first=first,
        second=second,
        first_preferred=counts[first],
        second_preferred=counts[second],
        equal=counts["equal"],
        neither=counts["neither"],
    )


def judgements_file(run: Path, checkpoint: str | None, against: str | None = None) -> Path:
    """Where a run keeps them: one file for each of its states, and for each other run that it was compared with."""
    name = f"blind-test-{checkpoint or 'final'}"
    return run / "evaluations" / (f"{name}.jsonl" if against is None else f"{name}-against-{against}.jsonl")


def keep_judgement(file: Path, judgement: Judgement) -> None:
    """Add one judgement.

    Raises:
        StorageError: If it cannot be written.
    """
    append_model(file, judgement, "The judgement cannot be kept", "Free some space, or check the run's folder.")


def read_judgements(file: Path) -> tuple[Judgement, ...]:
    """Return everything that was judged, oldest first; a damaged line is left out."""
    return read_models(file, Judgement)

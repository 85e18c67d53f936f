"""What a run scores on its test sets, read from its evaluations: columns of lists of runs."""

from pathlib import Path

from pydantic import BaseModel

from loratory.engine.config.results import HELD_OUT_PROMPTS
from loratory.engine.files import read_model, size_and_time

EVALUATIONS_FOLDER = "evaluations"


class TestScore(BaseModel, frozen=True):
    """What the tuned model scores on a test set."""

    __test__ = False  # for pytest

    score: float
    low: float  # of the 95% interval
    high: float
    checkpoint: str = ""  # that was evaluated; empty for the run's result

    @property
    def interval(self) -> str:
        """The interval, and whose it is where that is a checkpoint."""
        return f"{self.low:.2f} to {self.high:.2f}" + (f", {self.checkpoint}" if self.checkpoint else "")


class _Branch(BaseModel):
    score: float
    interval: tuple[float, float]


class _Test(BaseModel):
    name: str
    scorers: tuple[str, ...]
    branches: dict[str, _Branch]


class _Evaluation(BaseModel):  # the part of an EvaluationResult that lists show
    tests: tuple[_Test, ...] = ()


def read_test_scores(run: Path) -> dict[str, TestScore]:
    """Return the newest score on each test set, by its name and scorers: scores by others are not comparable."""
    scores = {}
    for file in sorted((run / EVALUATIONS_FOLDER).glob("*.json"), key=lambda file: size_and_time(file)[1]):
        checkpoint = file.name.partition(".")[0]
        for test in getattr(read_model(file, _Evaluation), "tests", ()):
            tuned = test.branches.get("tuned")
            if tuned is not None and test.name != HELD_OUT_PROMPTS:
                low, high = tuned.interval
                name = "" if checkpoint == "final" else checkpoint
                title = f"{test.name} ({', '.join(test.scorers)})"
                scores[title] = TestScore(score=tuned.score, low=low, high=high, checkpoint=name)
    return scores

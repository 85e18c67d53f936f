"""What is asked of an evaluation, and what comes out of it."""

import math
from pathlib import Path

from engine.chat.contract import Branch, ChatTarget, Value
from engine.chat.target import LoadPlan
from engine.config.results import EvaluationConfig
from engine.config.run import RunConfig
from engine.hardware.device import Device

_LARGEST_EXPONENT = 700.0  # beyond it e to the power overflows


class EvaluationRequest(Value):
    """Which run, with how many rows."""

    target: ChatTarget  # a run, with or without a checkpoint
    settings: EvaluationConfig = EvaluationConfig()


class DataThen(Value):
    """What the trainer got, by which it is seen whether the data has changed since; None where it was not recorded."""

    train_rows: int | None = None
    held_out_rows: int | None = None
    fingerprint: str | None = None


class EvaluationOrder(Value):
    """The same for the process that does it, with everything found."""

    plan: LoadPlan
    run: RunConfig
    settings: EvaluationConfig
    device: Device
    data_then: DataThen = DataThen()


class EvaluationProgress(Value):
    """How far it has come; `fraction` from 0 to 1 where it is known."""

    message: str
    fraction: float | None = None


class BranchLoss(Value):
    """Mean loss over all trained tokens of the held-out rows, in nats."""

    loss: float
    perplexity: float  # e to the loss: among how many equally likely tokens the model chooses, on average
    tokens: int

    @classmethod
    def of(cls, loss: float, tokens: int) -> "BranchLoss":
        """Work out the perplexity."""
        return cls(loss=loss, perplexity=math.exp(min(loss, _LARGEST_EXPONENT)), tokens=tokens)


class AnswerScores(Value):
    """An answer against its reference. `exact` ignores white space; the other scores are from 0 to 1."""

    exact: bool
    rouge_l: float
    chrf: float


class BranchAnswer(Value):
    """What one branch wrote on a row."""

    text: str
    tokens: int
    scores: AnswerScores


class AnsweredRow(Value):
    """A held-out row with its reference and the answers to it."""

    row: int  # of the dataset, from 0
    prompt: str
    reference: str
    answers: dict[Branch, BranchAnswer]


class MeanScores(Value):
    """Means over the answered rows."""

    exact: float
    rouge_l: float
    chrf: float
    rows: int


class EvaluationResult(Value):
    """What came out. Every branch saw the same rows with the same masking."""

    losses: dict[Branch, BranchLoss]
    rows: int  # that the loss was measured on
    scores: dict[Branch, MeanScores]  # empty where no row was answered
    answered: tuple[AnsweredRow, ...] = ()  # those with the worst tuned answers first
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def evaluation_file(run: Path, checkpoint: str | None) -> Path:
    """Return where a run keeps what was measured on it; one file for the final result and one for each checkpoint."""
    return run / "evaluations" / f"{checkpoint or 'final'}.json"

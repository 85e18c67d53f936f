"""What a trainer tells others, and what it lets them do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class HeldOutLoss(NamedTuple):
    """One measurement: mean over `tokens` trained tokens of `rows` rows, in nats."""

    loss: float
    tokens: int
    rows: int
    seconds: float


class LoggedStep(NamedTuple):
    """What is known at a logged step; `loss` is the mean over the steps since the last one."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None  # None also where the loss scaler skipped the step
    tokens: int
    trained_tokens: int
    tokens_per_second: float


@dataclass
class Progress:
    """What a run has done so far; saved with every checkpoint."""

    tokens: int = 0  # learned and masked, padding not counted
    trained_tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    measurements_since_best: int = 0


@dataclass
class TrainerHooks:
    """What others do when something happened; each may raise to end the run."""

    logged: Callable[[LoggedStep], None] = lambda _: None
    measured: Callable[[int, HeldOutLoss], None] = lambda _step, _loss: None
    save: Callable[[], None] = lambda: None
    between_passes: Callable[[], None] = lambda: None

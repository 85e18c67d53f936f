"""Callbacks of the training loop: the cadence of a run, skipped steps, the PEFT method, and hooks for the trainer's owner."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from loratory.engine.config.rules import Cadence, keeps_best
from loratory.engine.config.training import TrainingConfig
from loratory.engine.runs.history.events import EvalData, RolloutData, StepData
from loratory.engine.training.failure import DivergedError
from loratory.engine.training.methods.base import MethodTrainer

# Each skipped step halves the scale, which begins at 65,536: after so many, gradients overflow without any help.
MOST_SKIPPED_IN_A_ROW = 20

# A logged step waits for the GPU, reads its counters and writes to the disk; a chart gains nothing from more of them.
LOG_SECONDS = 0.25

# Steps between two checks of the count. It is on the scale's device, since reading it waits for the GPU.
OVERFLOW_CHECK_STEPS = 10


@dataclass
class TrainingProgress:
    """What a run has done so far; saved with every checkpoint."""

    tokens: int = 0  # trained and masked, padding not counted
    trained_tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    measurements_since_best: int = 0

    def count(self, measured: EvalData) -> None:
        """Remember whether a held-out loss is the lowest so far."""
        self.measurements_since_best += 1
        if self.best_loss is None or measured.eval_loss < self.best_loss:
            self.best_loss, self.best_step, self.measurements_since_best = measured.eval_loss, measured.step, 0


@dataclass
class LoggedInterval:
    """What happened since the last logged step."""

    began: float = field(default_factory=time.perf_counter)
    tokens: int = 0  # of all processes
    paused_seconds: float = 0.0  # spent on measuring and saving
    nonfinite_flag: torch.Tensor | None = None  # 0, or NaN once a norm of gradients was not finite
    metrics: torch.Tensor | None = None  # sums and counts of the objective's metrics


@dataclass
class TrainerHooks:
    """Called when something happened; each may raise to end the run. `stop_wanted` and `log_vote` are called in each step."""

    on_logged: Callable[[StepData], None] = lambda _: None
    answer: Callable[[Any, int], None] = lambda _model, _step: None  # prompts, in an evaluation
    on_rollout: Callable[[RolloutData], None] = lambda _: None
    on_measured: Callable[[EvalData], None] = lambda _: None
    save: Callable[[], None] = lambda: None
    between_passes: Callable[[], None] = lambda: None
    stop_wanted: Callable[[], bool] = lambda: False
    log_vote: Callable[[], int] = lambda: 0


@dataclass(eq=False)
class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Turns the cadence, requests to save and end, and a stalled held-out loss into the loop's own controls."""

    training: TrainingConfig
    measures: bool  # there are held-out rows
    stop_requested: Callable[[], bool]
    progress: Callable[[], TrainingProgress]  # the trainer's
    log_seconds: float = 0.0  # at least between two logged steps, but for those that must be logged
    clock: Callable[[], float] = time.monotonic
    # Of several processes, which would log different steps by their own clocks.
    log_voted: Callable[[], int | None] | None = None
    cadence: Cadence | None = None
    _logged_at: float | None = None
    _logged_step: int = 0
    _step_began: float = 0.0
    _step_seconds: float = math.inf  # of the last one
    stopped_on_request: bool = False
    stopped_early: bool = False

    def has_stalled(self) -> bool:
        """Whether the held-out loss has not improved for as long as was set."""
        patience = self.training.early_stopping_patience
        return patience is not None and self.progress().measurements_since_best >= patience

    def log_vote(self) -> int:
        """Return when the first of several processes logs: 2 at each step, 1 at the next step that reads it, 0 not yet."""
        if self._step_seconds >= self.log_seconds:
            return 2
        return int(self._is_time(self.clock()))

    def _is_time(self, now: float) -> bool:
        return self._logged_at is None or now - self._logged_at >= self.log_seconds

    def _may_log(self, step: int, now: float) -> bool:
        if self.log_voted is None:
            return self._is_time(now)
        vote = self.log_voted()
        # It was cast as the step before began, perhaps before that one was logged.
        return vote is None or vote == 2 or (vote == 1 and step - 1 > self._logged_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.cadence = Cadence.from_settings(self.training, int(state.max_steps), measures=self.measures)
        self._step_began = self.clock()
        if self.stop_requested():
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        assert self.cadence is not None
        step = int(state.global_step)
        ends = step >= self.cadence.total_steps
        control.should_evaluate |= self.cadence.measures_at(step)
        control.should_save |= self.cadence.saves_at(step)
        if self.stop_requested() and not ends:
            self.stopped_on_request = True
            control.should_save = control.should_training_stop = ends = True
        # A save is only as good as the loss before it, which must be logged and checked. The
        # measurement comes after the log.
        may_save = control.should_evaluate and keeps_best(self.training)
        now = self.clock()
        self._step_seconds, self._step_began = now - self._step_began, now
        control.should_log &= self._may_log(step, now)
        control.should_log |= control.should_save or may_save or ends
        if control.should_log:
            self._logged_at, self._logged_step = now, step

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Save what may turn out the best, and end the run where the held-out loss has stopped improving."""
        if self.progress().measurements_since_best == 0 and keeps_best(self.training):
            control.should_save = True
        if self.has_stalled() and not self.stopped_early:
            self.stopped_early = True
            control.should_save = control.should_training_stop = True


@dataclass(eq=False)
class SkippedSteps(TrainerCallback):  # type: ignore[misc]
    """Counts skipped optimizer steps: the scale of the loss falls with each, also where Accelerate does not notice."""

    loss_scale: Callable[[], torch.Tensor | None]  # on its device; None where losses are not scaled
    _before: torch.Tensor | None = None
    _in_a_row: torch.Tensor | int = 0

    @property
    def in_a_row(self) -> int:
        """Return the skipped steps in a row up to the last one, which changed no weight; waits for the GPU."""
        return int(self._in_a_row)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Record the scale before the first step."""
        if self._before is None:
            self._remember(self.loss_scale())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count, and check now and then, as `on_log` does."""
        scale = self.loss_scale()
        if scale is not None and self._before is not None:
            self._in_a_row = (self._in_a_row + 1) * (scale < self._before)
        self._remember(scale)
        if state.global_step % OVERFLOW_CHECK_STEPS == 0:
            self.on_log(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """End a run that no scale helps.

        Raises:
            DivergedError: If too many steps in a row were skipped.
        """
        if (in_a_row := self.in_a_row) >= MOST_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"The gradients overflowed float16 in {in_a_row} steps in a row up to step {state.global_step}, which were "
                "skipped.",
                "Set model.compute_dtype to float32, or lower the learning rate to a third; the last checkpoint stays.",
            )

    def _remember(self, scale: torch.Tensor | None) -> None:
        self._before = None if scale is None else scale.clone()  # the scaler writes into its own


@dataclass(eq=False)
class MethodSteps(TrainerCallback):  # type: ignore[misc]
    """Calls the PEFT method before the first step and after each, while gradients are still there."""

    method: MethodTrainer
    model: Any
    total_steps: int

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.method.begin(self.model, self.total_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.method.after_optimizer_step(self.model, int(state.global_step) + 1)

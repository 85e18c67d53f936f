"""Steps that a loss scaler leaves out because gradients overflowed float16: usual now and then, hopeless in a row."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from engine.training.failure import DivergedError

# Each skipped step halves the scale, which begins at 65,536: after so many, gradients overflow without any help.
MOST_SKIPPED_IN_A_ROW = 20


class SkippedSteps(TrainerCallback):  # type: ignore[misc]
    """Watches for optimizer steps that were left out.

    Args:
        was_skipped: Whether the step that just ended was, as Accelerate knows it.
        loss_scale: As it stands; None where losses are not scaled. Fused optimizers skip a step without Accelerate's
            seeing it, but the scale falls all the same.
    """

    def __init__(self, was_skipped: Callable[[], bool], loss_scale: Callable[[], float | None]) -> None:
        self._was_skipped = was_skipped
        self._loss_scale = loss_scale
        self._before: float | None = None
        self.in_a_row = 0

    @property
    def last_was_skipped(self) -> bool:
        """Whether the last step changed no weight, so that its gradient says nothing."""
        return self.in_a_row > 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """The first step has a scale to compare with as well."""
        if self._before is None:
            self._before = self._loss_scale()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Count, and end a run that no scale helps.

        Raises:
            DivergedError: If nothing was learned for too many steps in a row.
        """
        before, self._before = self._before, self._loss_scale()
        fell = before is not None and self._before is not None and self._before < before
        self.in_a_row = self.in_a_row + 1 if fell or self._was_skipped() else 0
        if self.last_was_skipped:
            print(f"Step {state.global_step} was skipped: its gradients overflowed float16.", flush=True)
        if self.in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"The gradients overflowed float16 in {self.in_a_row} steps in a row up to step {state.global_step}, and "
                "nothing was learned in them.",
                "Set model.compute_dtype to float32, or lower the learning rate to a third; the last checkpoint stays.",
            )

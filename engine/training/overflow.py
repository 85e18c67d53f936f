"""Steps that a loss scaler leaves out because gradients overflowed float16: usual now and then, hopeless in a row."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from engine.training.failure import DivergedError

# Each skipped step halves the scale, which begins at 65,536: after so many, gradients overflow without any help.
MOST_SKIPPED_IN_A_ROW = 20

# Steps between two looks at the count. It is kept where the scale is, since reading the scale waits for the GPU.
LOOK_STEPS = 10


class SkippedSteps(TrainerCallback):  # type: ignore[misc]
    """Watches for optimizer steps that were left out.

    Args:
        was_skipped: Whether the step that just ended was, as Accelerate knows it.
        loss_scale: The present scale, on its device; None where losses are not scaled. Fused optimizers skip a step without
            Accelerate's seeing it, but the scale falls all the same.
    """

    def __init__(self, was_skipped: Callable[[], bool], loss_scale: Callable[[], torch.Tensor | None]) -> None:
        self._was_skipped = was_skipped
        self._loss_scale = loss_scale
        self._before: torch.Tensor | None = None
        self._in_a_row: torch.Tensor | int = 0
        self._total: torch.Tensor | int = 0
        self._reported = 0

    @property
    def in_a_row(self) -> int:
        """Steps left out up to the last one; waits for the GPU."""
        return int(self._in_a_row)

    @property
    def last_was_skipped(self) -> bool:
        """Whether the last step changed no weight, so that its gradient says nothing; waits for the GPU."""
        return self.in_a_row > 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """The first step has a scale to compare with as well."""
        if self._before is None:
            self._remember(self._loss_scale())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Count, and now and then look.

        Raises:
            DivergedError: As `on_log` does.
        """
        skipped: bool | torch.Tensor = self._was_skipped()
        scale = self._loss_scale()
        if scale is not None and self._before is not None:
            skipped = (scale < self._before) | skipped
        self._remember(scale)
        self._in_a_row = (self._in_a_row + 1) * skipped
        self._total = self._total + skipped
        if state.global_step % LOOK_STEPS == 0:
            self._look(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Look, and end a run that no scale helps.

        Raises:
            DivergedError: If nothing was learned for too many steps in a row.
        """
        self._look(state.global_step)

    def _remember(self, scale: torch.Tensor | None) -> None:
        self._before = None if scale is None else scale.clone()  # the scaler writes into its own

    def _look(self, step: int) -> None:
        total, in_a_row = int(self._total), self.in_a_row
        if total > self._reported:
            print(
                f"{total - self._reported} step(s) up to {step} were skipped: gradients overflowed float16.", flush=True
            )
            self._reported = total
        if in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"The gradients overflowed float16 in {in_a_row} steps in a row up to step {step}, and nothing was learned in "
                "them.",
                "Set model.compute_dtype to float32, or lower the learning rate to a third; the last checkpoint stays.",
            )

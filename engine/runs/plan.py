"""Steps and tokens of a run before it starts."""

import math
from typing import NamedTuple

from engine.config.training import TrainingConfig
from engine.data.contract import DatasetReport


class RunPlan(NamedTuple):
    """Figures of a run that has not started."""

    steps: int
    sequences_per_step: int
    seen_tokens: int  # trained and masked, over all epochs
    trained_tokens: int
    is_estimate: bool  # packing decides at the start how many rows there are


def plan_run(training: TrainingConfig, report: DatasetReport) -> RunPlan | None:
    """Return steps and tokens as the trainer will count them; None where no tokens were counted.

    Source: transformers' `Trainer.set_initial_training_values`: batches are cut into whole steps, the last one may be
    smaller, and `max_steps` wins over the epochs.
    """
    if report.total_tokens is None or report.trained_tokens is None or not report.train_rows:
        return None
    share = report.train_rows / max(1, report.train_rows + report.held_out_rows)
    per_row = report.row_lengths.per_row if report.row_lengths is not None else 1  # a pair is a row of two
    sequences = round((report.sequences or report.kept) * share / per_row)
    tokens = report.total_tokens * share
    if training.packing:
        sequences = max(1, math.ceil(tokens / training.max_length))
    batches = math.ceil(sequences / training.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    steps = math.ceil(training.num_train_epochs * per_epoch)
    if training.max_steps > 0:
        steps = training.max_steps
    epochs = steps / per_epoch
    return RunPlan(
        steps=steps,
        sequences_per_step=training.per_device_train_batch_size * training.gradient_accumulation_steps,
        seen_tokens=round(tokens * epochs),
        trained_tokens=round(report.trained_tokens * share * epochs),
        is_estimate=training.packing,
    )

"""Which held-out rows are measured on the way: all of them, unless that would cost more than it tells."""

import random
from collections.abc import Sequence

from engine.config.training import TrainingConfig
from engine.data.passes.prepare import PreparedDataset
from engine.training.plan import EpochPlanner, PlanSettings
from engine.training.steps import TrainerRows

# Measuring shall not cost more than learning: what is measured on the way holds at most so many tokens.
_MEASURED_TOKENS_ALWAYS = 16_384
_MEASURED_SHARE = 0.03  # of all tokens that are learned from


def choose_rows(data: PreparedDataset, training: TrainingConfig, settings: PlanSettings) -> TrainerRows:
    """Return the rows to train on and those to measure on."""
    lengths = data.train.lengths()
    epochs = training.num_train_epochs
    if training.max_steps > 0:
        epochs = training.max_steps / EpochPlanner(lengths, settings).steps_per_epoch
    measured = choose_measured(data.held_out.lengths(), int(sum(lengths) * epochs), training.seed)
    held_out = [data.held_out[index] for index in measured]
    return TrainerRows(data.train, lengths, held_out, [len(row.input_ids) for row in held_out])


def choose_measured(lengths: Sequence[int], learned_tokens: int, seed: int) -> list[int]:
    """Held-out rows for the measurements on the way: all of them, or an even draw where they would cost too much.

    Args:
        lengths: Tokens of each held-out row.
        learned_tokens: Tokens that the whole run learns from, masked ones and repetitions included.
        seed: Of the draw.
    """
    budget = max(_MEASURED_TOKENS_ALWAYS, int(_MEASURED_SHARE * learned_tokens))
    order = list(range(len(lengths)))
    if sum(lengths) <= budget:
        return order
    random.Random(seed).shuffle(order)  # noqa: S311 - a draw, no secret
    chosen: list[int] = []
    tokens = 0
    for index in order:
        if chosen and tokens + lengths[index] > budget:
            break
        chosen.append(index)
        tokens += lengths[index]
    return sorted(chosen)

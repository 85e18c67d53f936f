"""How rows become a loss: the half of each objective in `engine.config.objectives` that needs torch, by the same name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.data.render.tokenize import TokenizedRow
from engine.training.batching.batches import PassTensors


class TrainingObjective:
    """How rows become a loss: supervised fine-tuning, the sum of -log p(token) over trained tokens.

    The trainer owns passes, accumulation, averaging and the backward pass; a subclass is another objective. For direct
    preference optimization, rows are pairs: `sequences` returns `chosen` and `rejected`, so both pass through the model
    together, and `count` returns half of `one.sequences`. `summed_loss` first runs the pass without gradient and with
    `model.disable_adapter()` for the reference's log-probabilities, then with the adapter, and returns the sum of
    `-logsigmoid(beta * (margin - reference margin))`; `engine.training.ops.loss` then has to return one log-probability per
    sequence next to its sum over tokens.
    """

    def sequences(self, row: TokenizedRow) -> Sequence[TokenizedRow]:
        """Return the token sequences of one row, in the order in which `summed_loss` expects them."""
        return (row,)

    def count(self, one: PassTensors) -> int:
        """Return how many terms the summed loss of a pass has; a step's loss is their mean."""
        return one.trained_tokens

    def summed_loss(self, model: Any, one: PassTensors) -> torch.Tensor:
        """Return the loss of a pass, summed over its terms, as a float32 scalar on the device of the output head.

        The model has its adapter, and `engine.training.ops.loss` attached; the pass is on the device and has a term.
        """
        return model(**one.inputs, trained_tokens=one.trained)


TRAINING_OBJECTIVES: Mapping[str, TrainingObjective] = {"sft": TrainingObjective()}

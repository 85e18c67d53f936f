"""Supervised fine-tuning: each row is one sequence, and its loss is summed over trained tokens."""

from collections.abc import Sequence
from typing import Any

import torch

from engine.training.batching.batches import PassTensors, TokenRow
from engine.training.objectives.base import TrainingObjective


class SupervisedLoss(TrainingObjective):
    """Sum of -log p(token) over trained tokens."""

    def sequences(self, row: TokenRow) -> Sequence[TokenRow]:
        """Return the row itself."""
        return (row,)

    def count(self, one: PassTensors) -> int:
        """Return the trained tokens."""
        return one.trained_tokens

    def summed_loss(self, model: Any, one: PassTensors) -> torch.Tensor:
        """Return the loss that `attach_loss` gave the model."""
        loss: torch.Tensor = model(**one.inputs, trained_tokens=one.trained)
        return loss

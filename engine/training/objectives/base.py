"""The interface of an objective's other half: which sequences a row gives, and how a pass becomes a loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from engine.training.batching.batches import PassTensors, TokenRow


class TrainingObjective(ABC):
    """How rows become a loss. The trainer owns passes, accumulation, averaging and the backward pass.

    A module for direct preference optimization would fill it like this. Rows are pairs; `sequences` returns `chosen` and
    `rejected`, each with the labels of its completion, so both pass through the model together. `count` returns half of
    `one.sequences`, so the loss is a mean over pairs. `summed_loss` first runs the pass without gradient with
    `model.disable_adapter()` for the reference's log-probabilities, then with the adapter, and returns the sum of
    `-logsigmoid(beta * (margin - reference margin))` over the pairs. `engine.training.ops.loss` then has to return one
    log-probability per sequence next to its sum over tokens. ORPO leaves out the first pass; KTO has one sequence per row.
    """

    @abstractmethod
    def sequences(self, row: TokenRow) -> Sequence[TokenRow]:
        """Return the token sequences of one row, in the order in which `summed_loss` expects them."""

    @abstractmethod
    def count(self, one: PassTensors) -> int:
        """Return how many terms the summed loss of a pass has; a step's loss is their mean."""

    @abstractmethod
    def summed_loss(self, model: Any, one: PassTensors) -> torch.Tensor:
        """Return the loss of a pass, summed over its terms, as a float32 scalar on the device of the output head.

        Args:
            model: With its adapter, and with `engine.training.ops.loss` attached.
            one: On the device, with at least one term.
        """

"""How a batch becomes a loss: the heavy half of each objective in `engine.config.objectives`, by the same name."""

from collections.abc import Mapping

from engine.training.objectives.base import TrainingObjective
from engine.training.objectives.sft import SupervisedLoss

TRAINING_OBJECTIVES: Mapping[str, TrainingObjective] = {"sft": SupervisedLoss()}

__all__ = ["TRAINING_OBJECTIVES", "TrainingObjective"]

"""The training part of each objective in `engine.config.objectives`, by the same name."""

from collections.abc import Mapping

from engine.training.objectives.base import TrainingObjective
from engine.training.objectives.pairs import DirectPreference, OddsRatio
from engine.training.objectives.ratings import KahnemanTversky

TRAINING_OBJECTIVES: Mapping[str, type[TrainingObjective]] = {
    one.traits.name: one for one in (TrainingObjective, DirectPreference, OddsRatio, KahnemanTversky)
}

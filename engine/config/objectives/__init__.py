"""What a run optimizes, as far as it is known without torch: the registry of objectives."""

from collections.abc import Mapping

from engine.config.objectives.base import Objective
from engine.config.objectives.sft import SupervisedFineTuning
from engine.config.run import RunConfig

OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in (SupervisedFineTuning(),)}


def objective_of(config: RunConfig) -> Objective:
    """Return the objective of a run; a second one brings the setting that chooses between them."""
    del config
    return OBJECTIVES[SupervisedFineTuning.name]

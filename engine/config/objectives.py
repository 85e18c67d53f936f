"""What a run optimizes, as far as it is known without torch.

How rows become a loss is the other half, in `engine.training.objectives`, under the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config.run import RunConfig


@dataclass(frozen=True)
class Objective:
    """The traits of an objective.

    Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) would state the metrics `loss`,
    `rewards_margin` and `rewards_accuracy`, and two sequences per example.
    """

    name: str  # value of the setting
    # Fields of `StepData` that are logged next to learning rate, gradient norm and speed, the loss first.
    metrics: tuple[str, ...] = ("loss",)
    sequences_per_example: int = 1  # that pass through the model at once, each up to `max_length`


SUPERVISED = Objective("sft")  # next-token loss over the answers of a conversation
OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in (SUPERVISED,)}


def objective_of(config: RunConfig) -> Objective:  # noqa: ARG001
    """Return the objective of a run; a second one brings the setting that chooses between them."""
    return SUPERVISED

"""The interface of an objective: what an example is, what is logged, what it costs in memory, what people see.

How a batch becomes a loss is the other half, in `engine.training.objectives`, which needs torch. A module of this package
and one of that with the same name make one objective.
"""

from typing import ClassVar, Literal, NamedTuple

# Views of a trained model: mean loss and perplexity on held-out rows; answers next to references; their scores; how often
# the tuned model prefers the chosen answer.
View = Literal["perplexity", "answers", "scores", "preferences"]


class Metric(NamedTuple):
    """One figure of a logged step, next to learning rate, gradient norm and speed, which every objective has."""

    name: str  # field of `StepData`; trackers get it as train/name
    label: str
    higher_is_better: bool = False


class Objective:
    """One objective. A subclass states its traits.

    Attributes:
        name: Value of the setting; name of the module in both packages.
        label: Name on the page, in messages and in the model card.
        help: One or two short sentences: what it does, how to choose.
        columns: What a data format must find in a row.
        metrics: Logged figures, the loss first. Early stopping and the best checkpoint go by the held-out loss.
        sequences_per_example: Sequences of an example that pass through the model at once, each up to `max_length`.
        uses_reference: The loss compares with the untrained model. With an adapter that is the same model with the adapter
            switched off, so it takes time and no memory; with full fine-tuning it is a second copy of the weights.
        views: What evaluation and chat show of the trained model.

    Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) would state: columns `prompt`, `chosen` and
    `rejected`; metrics `loss`, `rewards_margin` and `rewards_accuracy`; two sequences per example; `uses_reference`; views
    `answers` and `preferences`. ORPO is the same without the reference. KTO has columns `prompt`, `completion` and `label`,
    and one sequence per example.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    help: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("loss", "Loss"),)
    sequences_per_example: ClassVar[int] = 1
    uses_reference: ClassVar[bool] = False
    views: ClassVar[tuple[View, ...]] = ("answers",)

    def sequences_at_once(self, rows: int) -> int:
        """Return how many sequences a pass over so many rows holds activations of: the memory rule."""
        return rows * self.sequences_per_example

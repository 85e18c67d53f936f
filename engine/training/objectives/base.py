"""The interface of training objectives; its base class is supervised fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from loratory.engine.config.objectives import SUPERVISED, Objective
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.training.batching.batches import PassTensors
from loratory.engine.training.objectives.reference import ReferenceModel


@dataclass(frozen=True)
class PassLosses:
    """The losses of a pass: the sum of each part, float32 scalars, and sums and counts of the metrics."""

    sums: tuple[torch.Tensor, ...]
    metrics: torch.Tensor | None = None  # (metrics of the objective, 2), detached


class TrainingObjective:
    """Computes the loss of rows: supervised fine-tuning, the mean of -log p(token) over trained tokens.

    The trainer owns passes, accumulation, averaging and the backward pass; subclasses are other objectives. A loss has
    one or more parts, each a mean over its own terms (tokens, pairs) of all passes of a step on all processes.
    """

    traits: Objective = SUPERVISED

    def __init__(self, training: TrainingConfig | None = None, reference: ReferenceModel | None = None) -> None:
        self.training = training or TrainingConfig()
        self.reference = reference or ReferenceModel()

    def sequences(self, row: TokenizedRow) -> Sequence[TokenizedRow]:
        """Return the token sequences of one row, in the order in which `losses` expects them."""
        return row.sequences

    def groups(self, rows: Sequence[TokenizedRow]) -> list[Sequence[TokenizedRow]]:
        """Return the sequences of the rows of a pass, in their order, grouped by what they may begin with in common."""
        return [self.sequences(row) for row in rows]

    def mismatched_sequence(self, row: TokenizedRow, other: TokenizedRow) -> TokenizedRow | None:  # noqa: ARG002
        """Return a row's prompt with the answer of another row, if `estimate` needs it."""
        return None

    def extras(self, rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return further tensors about the rows of a pass, for `losses`."""
        return {}

    def terms(self, batch: PassTensors) -> tuple[int, ...]:
        """Return the number of terms of each part of a pass's loss."""
        return (batch.trained_tokens,)

    @property
    def needs_estimate(self) -> bool:
        """Return whether `losses` needs the sum of `estimate` over all passes of a step."""
        return False

    def estimate(self, model: Any, kl_batch: PassTensors) -> torch.Tensor:  # noqa: ARG002
        """Return a sum and a count over mismatched sequences, (2,), without gradient."""
        return torch.zeros(2)

    def run_dummy_reference(self, model: Any, batch: PassTensors) -> None:
        """Run the extra passes of `losses` without using the result, because other processes wait for them."""

    def losses(self, model: Any, batch: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:  # noqa: ARG002
        """Return the losses of a pass, which is on the device and has a term; `estimate` is the sum over the whole step.

        The model has its adapter, and `loratory.engine.training.ops.loss` attached.
        """
        return PassLosses((model(**batch.inputs, trained_tokens=batch.trained),))


def sequence_log_probabilities(model: Any, batch: PassTensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed log-probability of the trained tokens of each sequence, (sequences,), and that of each token."""
    tokens = -model(**batch.inputs, trained_tokens=batch.trained, token_losses=True)
    sums = tokens.new_zeros(batch.sequences).index_add(0, batch.sequence_of.to(tokens.device), tokens)
    return sums, tokens


def sequence_lengths(batch: PassTensors, device: torch.device) -> torch.Tensor:
    """Return the trained tokens of each sequence, at least 1, (sequences,)."""
    return count_by_sequence(batch, torch.ones_like(batch.sequence_of, dtype=torch.float32, device=device))


def count_by_sequence(batch: PassTensors, counts: torch.Tensor) -> torch.Tensor:
    """Return the sum over the trained tokens of each sequence, at least 1, (sequences,), without waiting for a GPU."""
    sequences = batch.sequence_of.to(counts.device)
    return counts.new_zeros(batch.sequences).index_add(0, sequences, counts).clamp_min(1)


class MaskedValues(NamedTuple):
    """Elements of a tensor where a mask is true. Indexing with the mask would wait for the GPU to count them."""

    values: torch.Tensor
    mask: torch.Tensor

    def sum(self) -> torch.Tensor:
        """Return the sum of the elements, with its gradient."""
        return torch.where(self.mask, self.values, 0.0).sum()


def sums_and_counts(metrics: Sequence[torch.Tensor | MaskedValues]) -> torch.Tensor:
    """Return the sum and the number of elements of each tensor, (tensors, 2), detached."""
    pairs = []
    for metric in metrics:
        if isinstance(metric, MaskedValues):
            count = metric.mask.sum().float()
        else:
            count = metric.new_full((), metric.numel()).float()
        pairs.append(torch.stack([metric.sum().detach().float(), count]))
    return torch.stack(pairs)

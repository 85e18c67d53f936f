"""KTO: an objective on single answers with a label, good or bad."""

from collections.abc import Sequence
from typing import Any

import torch

from engine.config.objectives import KTO
from engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from engine.training.batching.batches import PassTensors
from engine.training.objectives.base import (
    MaskedValues,
    PassLosses,
    TrainingObjective,
    sequence_log_probabilities,
    sums_and_counts,
)


class KahnemanTversky(TrainingObjective):
    """Kahneman-Tversky optimization: raise good answers and lower bad ones, relative to the reference and an estimated KL.

    The KL is estimated from answers of a step after each other's prompts. TRL estimates it within each batch; here it is
    the whole step of a process, so dividing a step into passes changes nothing.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306; `KTOTrainer._compute_loss`, trl/trainer/kto_trainer.py.
    """

    traits = KTO

    def mismatched_sequence(self, row: TokenizedRow, other: TokenizedRow) -> TokenizedRow | None:
        start = next(place for place, label in enumerate(row.labels) if label != IGNORED_LABEL)
        answer = next(place for place, label in enumerate(other.labels) if label != IGNORED_LABEL)
        cut = self.training.max_length
        ids = (row.input_ids[:start] + other.input_ids[answer:])[:cut]
        labels = ([IGNORED_LABEL] * start + other.labels[answer:])[:cut]
        return TokenizedRow(row.row, row.part, ids, labels)

    def extras(self, rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:
        return {"desirable": torch.tensor([row.desirable for row in rows if row.desirable is not None])}

    def terms(self, one: PassTensors) -> tuple[int, ...]:
        return (one.sequences,)

    @property
    def needs_estimate(self) -> bool:
        return (self.training.loss_type or self.traits.losses)[0] in self.traits.kl_losses

    def estimate(self, model: Any, mismatched: PassTensors) -> torch.Tensor:
        with torch.no_grad():
            own, _ = sequence_log_probabilities(getattr(model, "module", model), mismatched)
        with self.reference.replacing(model) as reference:
            expected, _ = sequence_log_probabilities(reference, mismatched)
        gains = own - expected
        return sums_and_counts((gains,))[0]

    def losses(self, model: Any, one: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:
        with self.reference.replacing(model) as reference:
            expected, _ = sequence_log_probabilities(reference, one)
        own, _ = sequence_log_probabilities(model, one)
        ratios, beta = own - expected, self.training.beta
        kl = (
            own.new_zeros(())
            if estimate is None
            else (estimate[0] / estimate[1].clamp_min(1)).clamp_min(0).to(own.device)
        )
        desirable = one.extras["desirable"].to(own.device)
        utilities = torch.sigmoid(beta * torch.where(desirable, ratios - kl, kl - ratios))
        weights = torch.where(desirable, self.training.desirable_weight, self.training.undesirable_weight)
        rewards, bad = beta * ratios.detach(), ~desirable
        metrics = (
            MaskedValues(rewards, desirable),
            MaskedValues(rewards, bad),
            MaskedValues(own, desirable),
            MaskedValues(own, bad),
            kl,
        )
        return PassLosses(((weights * (1 - utilities)).sum(),), sums_and_counts(metrics))

"""Group relative policy optimization: raise the sampled answers that were rated above the others to the same prompt.

Source: Shao et al. 2024, arXiv:2402.03300; names, defaults and formulas are those of TRL's `GRPOTrainer`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loratory.engine.config.objectives import GRPO
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.training.batching.batches import PassTensors
from loratory.engine.training.objectives.base import (
    PassLosses,
    TrainingObjective,
    sequence_lengths,
    sequence_log_probabilities,
    sums_and_counts,
)

_EPSILON = 1e-4  # added to the spread of rewards, by which they are divided
# Answers whose probability by the trainer's passes is more than so many times that at sampling do not count:
# `vllm_importance_sampling_clip_max` of `vllm_importance_sampling_mode` sequence_mask (Liu et al. 2025, MIS).
_LARGEST_CORRECTION = 3.0


@dataclass(frozen=True)
class SampledAnswer(TokenizedRow):
    """A prompt with an answer that was sampled; the answer's tokens are trained, or none where it is left out."""

    advantage: float = 0.0
    sampled: Sequence[float] = ()  # log-probability of each trained token, as the generator computed it
    old: Sequence[float] = ()  # the same by the trainer's passes, where the answers serve several steps


def group_advantages(rewards: torch.Tensor, scale: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far each reward is above its group's mean, in units of `scale`, and which groups have no spread.

    Args:
        rewards: (prompts, answers), NaN where an answer has none, whose advantage is 0.
        scale: `scale_rewards` of the settings.
    """
    spread = nan_std(rewards.flatten()).expand(len(rewards)) if scale == "batch" else nan_std(rewards, dim=1)
    advantages = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    if scale != "none":
        advantages = advantages / (spread.unsqueeze(1) + _EPSILON)
    return torch.nan_to_num(advantages, nan=0.0), torch.isclose(spread, torch.zeros_like(spread))


def nan_std(values: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Return the standard deviation of a sample, without NaN; NaN for fewer than two values."""
    count = (~torch.isnan(values)).sum(dim)
    squares = (values - torch.nanmean(values, dim=dim, keepdim=True)) ** 2
    return torch.sqrt(torch.nansum(squares, dim=dim) / torch.where(count > 1, count - 1, torch.nan))


class GroupRelativePolicy(TrainingObjective):
    """The clipped objective of GRPO, over the answers that the loop `rollouts` sampled and had scored."""

    traits = GRPO

    def __init__(self, training: TrainingConfig | None = None, reference: Any = None) -> None:
        super().__init__(training, reference)
        self.loss_type = (self.training.loss_type or self.traits.losses)[0]

    def groups(self, rows: Sequence[TokenizedRow]) -> list[Sequence[TokenizedRow]]:
        return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.row)]

    def extras(self, rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:
        answers = [row for row in rows if isinstance(row, SampledAnswer)]
        values = {
            "advantages": [answer.advantage for answer in answers],
            "sampled": [value for answer in answers for value in answer.sampled],
            "old": [value for answer in answers for value in answer.old],
        }
        return {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in values.items()}

    def terms(self, batch: PassTensors) -> tuple[int, ...]:
        if self.loss_type == "grpo":
            return (batch.sequences,)
        if self.loss_type == "dr_grpo":
            return (batch.sequences * self.training.max_completion_length,)
        return (batch.trained_tokens,)  # dapo, and bnpo where a step is one batch

    def losses(self, model: Any, batch: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:  # noqa: ARG002
        training, reference = self.training, None
        if training.beta:
            with self.reference.replacing(model) as reference_model:
                reference = sequence_log_probabilities(reference_model, batch)[1]
        _, own = sequence_log_probabilities(model, batch)
        extras = {name: values.to(own.device) for name, values in batch.extras.items()}
        sequence = batch.sequence_of.to(own.device)
        old = extras["old"] if len(extras["old"]) else own.detach()
        ratio, advantages = torch.exp(own - old), extras["advantages"][sequence]
        low, high = 1 - training.epsilon, 1 + (training.epsilon_high or training.epsilon)
        losses = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        # The generator multiplies in another order, or in fewer digits, than the passes here.
        difference = old - extras["sampled"]
        correction = torch.exp(difference.new_zeros(batch.sequences).index_add(0, sequence, difference))
        correction = correction.masked_fill(correction > _LARGEST_CORRECTION, 0.0)
        losses = losses * correction[sequence]
        kl = own.new_zeros(0)
        if reference is not None:
            # Schulman 2020, "Approximating KL divergence", k3; its gradient is unbiased times the ratio (arXiv:2512.02556).
            kl = (torch.exp(reference - own) - (reference - own) - 1) * ratio
            losses = losses + training.beta * kl
        if self.loss_type == "grpo":
            losses = losses / sequence_lengths(batch, own.device)[sequence]
        too_low, too_high = (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0)
        clipped = (mask.float() for mask in (too_low, too_high, too_low | too_high))
        return PassLosses((losses.sum(),), sums_and_counts((kl, *clipped, correction, difference.abs())))

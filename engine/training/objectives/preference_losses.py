"""The losses of DPO by their names in TRL.

Source: `DPOTrainer._compute_loss`, trl/trainer/dpo_trainer.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from engine.config.training import PreferenceLoss


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of both answers of each pair relative to the reference, (pairs,) each, and the losses' settings."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    beta: float
    smoothing: float

    @property
    def margin(self) -> torch.Tensor:
        """The gain of the chosen over the rejected answer."""
        return self.chosen - self.rejected

    @property
    def margin_per_token(self) -> torch.Tensor:
        """The same with the average over the tokens of each answer."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def _exo_pair(pairs: PairScores) -> torch.Tensor:
    """Ji et al. 2024, arXiv:2402.00856, equation 16."""
    gain = pairs.beta * pairs.margin
    better = torch.sigmoid(gain) * (logsigmoid(gain) - math.log1p(-pairs.smoothing))
    return better + torch.sigmoid(-gain) * (logsigmoid(-gain) - math.log(pairs.smoothing))


def _nca_pair(pairs: PairScores) -> torch.Tensor:
    """Chen et al. 2024, arXiv:2402.05369."""
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _robust(pairs: PairScores) -> torch.Tensor:
    """Chowdhury et al. 2024, arXiv:2403.00409."""
    gain, smoothing = pairs.beta * pairs.margin, pairs.smoothing
    return (-(1 - smoothing) * logsigmoid(gain) + smoothing * logsigmoid(-gain)) / (1 - 2 * smoothing)


def _apo_down(pairs: PairScores) -> torch.Tensor:
    """D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8."""
    return torch.sigmoid(pairs.beta * pairs.chosen) + 1 - torch.sigmoid(pairs.beta * pairs.margin)


PAIR_LOSSES: Mapping[PreferenceLoss, Callable[[PairScores], torch.Tensor]] = {
    "sigmoid": lambda pairs: -logsigmoid(pairs.beta * pairs.margin),  # Rafailov et al. 2023, arXiv:2305.18290
    "hinge": lambda pairs: torch.relu(1 - pairs.beta * pairs.margin),  # Zhao et al. 2023, arXiv:2305.10425
    "ipo": lambda pairs: (pairs.margin_per_token - 1 / (2 * pairs.beta)) ** 2,  # Azar et al. 2023, arXiv:2310.12036
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    # Jung et al. 2024, arXiv:2404.04656
    "bco_pair": lambda pairs: -logsigmoid(pairs.beta * pairs.chosen) - logsigmoid(-pairs.beta * pairs.rejected),
    # Wu et al. 2024, arXiv:2405.00675, with the winner's probability 1
    "sppo_hard": lambda pairs: (pairs.chosen - 0.5 / pairs.beta) ** 2 + (pairs.rejected + 0.5 / pairs.beta) ** 2,
    "apo_zero": lambda pairs: 1 - torch.sigmoid(pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * pairs.rejected),
    "apo_down": _apo_down,
    "sigmoid_norm": lambda pairs: -logsigmoid(pairs.beta * pairs.margin_per_token),  # arXiv:2411.15124
}

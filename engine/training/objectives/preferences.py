"""Objectives on preferences: DPO and ORPO on pairs, the one with a reference model, and KTO on answers with a label."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from loratory.engine.config.objectives import DPO, KTO, ORPO
from loratory.engine.config.training import LossName
from loratory.engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from loratory.engine.training.batching.batches import PassTensors
from loratory.engine.training.objectives.base import (
    MaskedValues,
    PassLosses,
    TrainingObjective,
    count_by_sequence,
    sequence_lengths,
    sequence_log_probabilities,
    sums_and_counts,
)

_LOG_HALF = -0.6931471805599453


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


PAIR_LOSSES: Mapping[LossName, Callable[[PairScores], torch.Tensor]] = {
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


class DirectPreference(TrainingObjective):
    """Direct preference optimization: raise the chosen answer over the rejected one, relative to the reference.

    Source: Rafailov et al. 2023, arXiv:2305.18290.
    """

    traits = DPO

    def extras(self, rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:
        references = [row.reference for row in rows if row.reference is not None]
        return {"reference": torch.tensor(references).flatten()} if references else {}

    def terms(self, batch: PassTensors) -> tuple[int, ...]:
        pairs = batch.sequences // 2
        return (pairs, sum(batch.sequence_tokens[0::2])) if "sft" in self._weights else (pairs,)

    def losses(self, model: Any, batch: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:  # noqa: ARG002
        reference = self.reference_log_probabilities(model, batch)
        own, tokens = sequence_log_probabilities(model, batch)
        ratios, lengths = own - reference.to(own.device), sequence_lengths(batch, own.device)
        pairs = PairScores(
            ratios[0::2], ratios[1::2], lengths[0::2], lengths[1::2], self.training.beta, self.training.label_smoothing
        )
        parts = [weight * PAIR_LOSSES[name](pairs) for name, weight in self._weights.items() if name in PAIR_LOSSES]
        sums = [torch.stack([part.sum() for part in parts]).sum() if parts else own.new_zeros(())]
        if "sft" in self._weights:
            is_chosen = batch.sequence_of.to(tokens.device) % 2 == 0
            sums.append(self._weights["sft"] * -MaskedValues(tokens, is_chosen).sum())
        chosen, rejected = (self.training.beta * side.detach() for side in (pairs.chosen, pairs.rejected))
        longer = _longer_preferred(chosen, rejected, lengths)
        metrics = (chosen, rejected, chosen - rejected, (chosen > rejected).float(), own[0::2], own[1::2], longer)
        return PassLosses(tuple(sums), sums_and_counts(metrics))

    def reference_log_probabilities(self, model: Any, batch: PassTensors) -> torch.Tensor:
        """Return the reference's log-probability of each answer, (sequences,): precomputed, or by a pass of the reference."""
        if "reference" in batch.extras:
            return batch.extras["reference"]
        with self.reference.replacing(model) as reference:
            return sequence_log_probabilities(reference, batch)[0]

    def run_dummy_reference(self, model: Any, batch: PassTensors) -> None:
        if not self.training.precompute_ref_log_probs:
            self.reference_log_probabilities(model, batch)

    @property
    def _weights(self) -> dict[LossName, float]:
        names = self.training.loss_type or self.traits.losses[:1]
        return dict(zip(names, self.training.loss_weights or (1.0,) * len(names), strict=True))


class OddsRatio(TrainingObjective):
    """Odds ratio preference optimization: the likelihood of prompt and chosen answer, and the odds of the two answers.

    As in TRL, answers count by their average log-probability per token. Source: Hong et al. 2024, arXiv:2403.07691.
    """

    traits = ORPO

    def sequences(self, row: TokenizedRow) -> Sequence[TokenizedRow]:
        if row.rejected is None:
            return (row,)
        return (TokenizedRow(row.row, row.part, row.input_ids, row.input_ids), row.rejected)

    def extras(self, rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:
        answers: list[bool] = []  # of each trained token: whether it is an answer's
        for row in rows:
            if row.rejected is not None:
                answers += [label != IGNORED_LABEL for label in row.labels[1:]]
                answers += [True] * sum(label != IGNORED_LABEL for label in row.rejected.labels[1:])
        return {"answers": torch.tensor(answers)}

    def terms(self, batch: PassTensors) -> tuple[int, ...]:
        return batch.sequences // 2, sum(batch.sequence_tokens[0::2])

    def losses(self, model: Any, batch: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:  # noqa: ARG002
        _, tokens = sequence_log_probabilities(model, batch)
        answers, sequence = batch.extras["answers"].to(tokens.device), batch.sequence_of.to(tokens.device)
        sums = tokens.new_zeros(batch.sequences).index_add(0, sequence, torch.where(answers, tokens, 0.0))
        lengths = count_by_sequence(batch, answers.float())
        means = sums / lengths
        chosen, rejected = means[0::2], means[1::2]
        odds = (chosen - rejected) - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
        ratio, beta = logsigmoid(odds), self.training.beta
        likelihood = MaskedValues(-tokens, sequence % 2 == 0)
        rewards = (beta * chosen.detach(), beta * rejected.detach())
        longer = _longer_preferred(*rewards, lengths)
        metrics = (
            *rewards, rewards[0] - rewards[1], (rewards[0] > rewards[1]).float(), chosen, rejected, likelihood, ratio, odds,
            longer,
        )  # fmt: skip
        return PassLosses((-beta * ratio.sum(), likelihood.sum()), sums_and_counts(metrics))


def _longer_preferred(chosen: torch.Tensor, rejected: torch.Tensor, lengths: torch.Tensor) -> MaskedValues:
    """Return for each pair of unequal lengths 1 if the longer answer has the higher reward, 0 if not, 0.5 for equal rewards."""
    difference, margins = lengths[0::2] - lengths[1::2], chosen - rejected
    return MaskedValues(0.5 + 0.5 * torch.sign(difference) * torch.sign(margins), difference != 0)


def _log_one_minus_exp(values: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(x)) for x < 0, precise on both ends.

    Source: Mächler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    near = values > _LOG_HALF
    # Each branch gets only values that it can differentiate.
    close = torch.log(-torch.expm1(torch.where(near, values, _LOG_HALF)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, _LOG_HALF, values))))


class KahnemanTversky(TrainingObjective):
    """Kahneman-Tversky optimization: raise good answers and lower bad ones, relative to the reference and an estimated KL.

    The KL is estimated from answers of a step after each other's prompts. TRL estimates it within each batch; here it is
    the whole step of a process, so dividing a step into passes changes nothing.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306; `KTOTrainer._compute_loss`, trl/trainer/kto_trainer.py.
    """

    traits = KTO

    def mismatched_sequence(self, row: TokenizedRow, other: TokenizedRow) -> TokenizedRow | None:
        start = next(index for index, label in enumerate(row.labels) if label != IGNORED_LABEL)
        answer = next(index for index, label in enumerate(other.labels) if label != IGNORED_LABEL)
        cut = self.training.max_length
        ids = (row.input_ids[:start] + other.input_ids[answer:])[:cut]
        labels = ([IGNORED_LABEL] * start + other.labels[answer:])[:cut]
        return TokenizedRow(row.row, row.part, ids, labels)

    def extras(self, rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:
        return {"desirable": torch.tensor([row.desirable for row in rows if row.desirable is not None])}

    def terms(self, batch: PassTensors) -> tuple[int, ...]:
        return (batch.sequences,)

    @property
    def needs_estimate(self) -> bool:
        return (self.training.loss_type or self.traits.losses)[0] in self.traits.kl_losses

    def estimate(self, model: Any, kl_batch: PassTensors) -> torch.Tensor:
        with torch.no_grad():
            own, _ = sequence_log_probabilities(getattr(model, "module", model), kl_batch)
        with self.reference.replacing(model) as reference:
            expected, _ = sequence_log_probabilities(reference, kl_batch)
        gains = own - expected
        return sums_and_counts((gains,))[0]

    def losses(self, model: Any, batch: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:
        with self.reference.replacing(model) as reference:
            expected, _ = sequence_log_probabilities(reference, batch)
        own, _ = sequence_log_probabilities(model, batch)
        ratios, beta = own - expected, self.training.beta
        kl = (
            own.new_zeros(())
            if estimate is None
            else (estimate[0] / estimate[1].clamp_min(1)).clamp_min(0).to(own.device)
        )
        desirable = batch.extras["desirable"].to(own.device)
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

"""Accuracy and rewards on held-out pairs, and on completions with a label (KTO), with their uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from loratory.engine.chat.contract import Branch, FrozenModel
from loratory.engine.evaluation.blind_test import SIGNIFICANCE_LEVEL, sign_test

_IN_ORDER_OF_TRAINING: tuple[Branch, ...] = ("base", "second", "tuned")
_Z = 1.959963984540054  # of a two-sided 95% interval


class PairLikelihoods(NamedTuple):
    """Log-probabilities of the chosen and the rejected answer of each pair by one branch, in nats."""

    chosen: Sequence[float]
    rejected: Sequence[float]


def _difference(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


class BranchPreference(FrozenModel):
    """The results of one branch on the pairs."""

    preferred: int  # pairs in which the chosen answer as a whole is likelier
    preferred_per_token: int  # the same by the average over each answer's tokens, which favours no short answer
    margin: float  # mean log-probability of the chosen minus that of the rejected answer, in nats
    # Pairs in which the chosen answer gained on the rejected one since the reference; None for the reference itself.
    gained_pairs: int | None = Field(default=None, validation_alias="gained", serialization_alias="gained")
    reward_margin: float | None = None  # mean of beta times that gain


class PreferenceResult(FrozenModel):
    """Results on held-out pairs, which are the same for every branch."""

    pairs: int
    branches: dict[Branch, BranchPreference]
    # What training started from; None if the objective has none, or it cannot be loaded.
    reference: Branch | None = None
    beta: float = 0.1
    # Pairs that tuned alone, and this branch alone, prefers as people did.
    flips: dict[Branch, tuple[int, int]] = Field(
        default_factory=dict, validation_alias="turned", serialization_alias="turned"
    )

    @property
    def right(self) -> int:
        """Pairs on which the tuned model is right, as in training: the chosen answer gained on the rejected one.

        Without a reference, pairs whose chosen answer is likelier.
        """
        tuned = self.branches["tuned"]
        return tuned.gained_pairs if tuned.gained_pairs is not None else tuned.preferred

    @property
    def accuracy(self) -> float:
        """The preference accuracy of the tuned model."""
        return self.right / self.pairs


def measure_preference(
    likelihoods: Mapping[Branch, PairLikelihoods],
    tokens: Sequence[tuple[int, int]],
    reference: Branch | None,
    beta: float,
) -> PreferenceResult:
    """Compute the preferences of every branch.

    Args:
        likelihoods: Of at least one pair.
        tokens: Of the chosen and the rejected answer of each pair.
        reference: The branch to which rewards relate, as in DPO: beta times the gained log-probability.
    """
    margins = {branch: _difference(*likelihoods[branch]) for branch in _IN_ORDER_OF_TRAINING if branch in likelihoods}
    start = margins.get(reference) if reference is not None else None
    count = len(tokens)
    branches: dict[Branch, BranchPreference] = {}
    for branch, own in margins.items():
        pairs = zip(likelihoods[branch].chosen, likelihoods[branch].rejected, tokens, strict=True)
        gains = _difference(own, start) if start is not None and branch != reference else None
        branches[branch] = BranchPreference(
            preferred=sum(margin > 0 for margin in own),
            preferred_per_token=sum(c / max(1, length[0]) > r / max(1, length[1]) for c, r, length in pairs),
            margin=math.fsum(own) / count,
            gained_pairs=sum(gain > 0 for gain in gains) if gains is not None else None,
            reward_margin=beta * math.fsum(gains) / count if gains is not None else None,
        )
    flips: dict[Branch, tuple[int, int]] = {}
    for branch in (branch for branch in margins if branch != "tuned" and "tuned" in margins):
        sides = [(tuned > 0, other > 0) for tuned, other in zip(margins["tuned"], margins[branch], strict=True)]
        flips[branch] = (sides.count((True, False)), sides.count((False, True)))
    return PreferenceResult(
        pairs=count, branches=branches, reference=reference if start is not None else None, beta=beta, flips=flips
    )


def interval(successes: int, count: int) -> tuple[float, float]:
    """Return the Wilson 95% confidence interval of a proportion.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001, "Interval Estimation for a Binomial Proportion".
    """
    share, extra = successes / count, _Z * _Z / count
    middle = (share + extra / 2) / (1 + extra)
    half = _Z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def describe_accuracy(result: PreferenceResult, names: Mapping[Branch, str]) -> list[str]:
    """Return the accuracy of the tuned model with its uncertainty, and how often the chosen answer is likelier."""
    tuned, (low, high) = result.branches["tuned"], interval(result.right, result.pairs)
    pairs = f"in {result.right:,} of {result.pairs:,} held-out pairs"
    sure = f"the true share lies between {low:.0%} and {high:.0%} (95% interval)."
    if tuned.gained_pairs is None or tuned.reward_margin is None or result.reference is None:
        return [f"Preference accuracy {result.accuracy:.0%}: the chosen answer is likelier {pairs}; {sure}"]
    return [
        f"Preference accuracy {result.accuracy:.0%}: since {names[result.reference]}, the chosen answer gained on the "
        f"rejected one {pairs}; {sure} Reward margin {tuned.reward_margin:.3f} at beta {result.beta:g}.",
        f"The chosen answer as a whole is likelier than the rejected one in {tuned.preferred:,} of "
        f"{result.pairs:,} pairs ({tuned.preferred / result.pairs:.0%}), which also depends on length and wording.",
    ]


def describe_flips(result: PreferenceResult, branch: Branch, name: str) -> str:
    """Return in how many pairs tuned and another branch differ, and whether that is significant."""
    better, worse = result.flips[branch]
    if not better and not worse:
        return f"Compared with {name}, the likelier answer is the same in every pair."
    clear = sign_test(better, worse) < SIGNIFICANCE_LEVEL
    verdict = "that is clear" if clear else "that may be chance"
    return (
        f"Compared with {name}, the likelier answer changed to the chosen one in {better:,} of {result.pairs:,} pairs "
        f"and away from it in {worse:,}: {verdict} (exact sign test)."
    )


class BranchRatings(FrozenModel):
    """The results of one branch. Rewards are means; None if no completion has the label."""

    right_desirable: int  # desirable completions with a reward above zero
    right_undesirable: int  # undesirable completions with a reward below zero
    reward_desirable: float | None
    reward_undesirable: float | None

    @property
    def right(self) -> int:
        """Completions whose reward has the sign of their label."""
        return self.right_desirable + self.right_undesirable

    @property
    def difference(self) -> float | None:
        """Mean reward of desirable minus that of undesirable completions, TRL's rewards/margins."""
        if self.reward_desirable is None or self.reward_undesirable is None:
            return None
        return self.reward_desirable - self.reward_undesirable


class RatingResult(FrozenModel):
    """Results on held-out completions with a label. The reference has no rewards and is left out."""

    desirable: int
    undesirable: int
    branches: dict[Branch, BranchRatings]
    reference: Branch  # what training started from
    beta: float

    @property
    def completions(self) -> int:
        return self.desirable + self.undesirable

    @property
    def right(self) -> int:
        """Completions on which the tuned model is right."""
        return self.branches["tuned"].right

    @property
    def accuracy(self) -> float:
        """The share of completions on which the tuned model is right."""
        return self.right / self.completions


def measure_ratings(
    likelihoods: Mapping[Branch, Sequence[float]], desirable: Sequence[bool], reference: Branch, beta: float
) -> RatingResult | None:
    """Compute the rewards of every branch: beta times the gain in log-probability over the reference.

    Args:
        likelihoods: Log-probability of each completion by each branch, in nats.
        desirable: The label of each completion.

    Returns:
        None if the reference or the tuned model was not measured, or there is no completion.
    """
    if reference not in likelihoods or "tuned" not in likelihoods or reference == "tuned" or not desirable:
        return None

    def ratings_of(branch: Branch) -> BranchRatings:
        rewards = [beta * gain for gain in _difference(likelihoods[branch], likelihoods[reference])]
        good, bad = (
            [reward for reward, label in zip(rewards, desirable, strict=True) if label is kind]
            for kind in (True, False)
        )
        return BranchRatings(
            right_desirable=sum(reward > 0 for reward in good),
            right_undesirable=sum(reward < 0 for reward in bad),
            reward_desirable=math.fsum(good) / len(good) if good else None,
            reward_undesirable=math.fsum(bad) / len(bad) if bad else None,
        )

    return RatingResult(
        desirable=sum(desirable),
        undesirable=len(desirable) - sum(desirable),
        branches={
            branch: ratings_of(branch)
            for branch in _IN_ORDER_OF_TRAINING
            if branch in likelihoods and branch != reference
        },
        reference=reference,
        beta=beta,
    )


def describe_ratings(result: RatingResult, names: Mapping[Branch, str]) -> list[str]:
    """Return the accuracy of the tuned model with its uncertainty, what a reward is, and the mean rewards."""
    tuned, (low, high) = result.branches["tuned"], interval(result.right, result.completions)
    sides = [
        f"{right:,} of {count:,} {label}"
        for right, count, label in (
            (tuned.right_desirable, result.desirable, "desirable"),
            (tuned.right_undesirable, result.undesirable, "undesirable"),
        )
        if count
    ]
    sentences = [
        f"Accuracy {result.accuracy:.0%}: the reward has the sign of the label in {result.right:,} of "
        f"{result.completions:,} held-out completions ({', '.join(sides)}); the true share lies between {low:.0%} and "
        f"{high:.0%} (95% interval).",
        f"The reward is beta {result.beta:g} times the log-probability that a completion gained since "
        f"{names[result.reference]}: above zero is right for a desirable one, below zero for an undesirable one.",
    ]
    if tuned.difference is None:
        label = "desirable" if result.desirable else "undesirable"
        mean = tuned.reward_desirable if result.desirable else tuned.reward_undesirable
        sentences.append(
            f"Mean reward {mean:+.3f}. Every completion is {label}, so this does not show whether the model separates good from bad."
        )
    else:
        sentences.append(
            f"Mean reward {tuned.reward_desirable:+.3f} of desirable and {tuned.reward_undesirable:+.3f} of undesirable "
            f"completions, difference {tuned.difference:+.3f}."
        )
    return sentences


def rating_cells(ratings: BranchRatings, result: RatingResult) -> list[str]:
    """Return a branch's accuracy, its mean rewards and their difference, as the cells of a table."""
    rewards = (ratings.reward_desirable, ratings.reward_undesirable, ratings.difference)
    return [
        f"{ratings.right / result.completions:.0%}",
        *("–" if value is None else f"{value:+.3f}" for value in rewards),
    ]


RATING_COLUMNS = ("Accuracy", "Reward, desirable", "Reward, undesirable", "Difference")

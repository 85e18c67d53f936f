"""Reward accuracy on held-out completions with a label (KTO), with its uncertainty."""

import math
from collections.abc import Mapping, Sequence

from engine.chat.contract import Branch, Value
from engine.evaluation.preference import interval

_IN_ORDER_OF_TRAINING: tuple[Branch, ...] = ("base", "second", "tuned")


class BranchRatings(Value):
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


class RatingResult(Value):
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

    def of(branch: Branch) -> BranchRatings:
        pairs = zip(likelihoods[branch], likelihoods[reference], strict=True)
        rewards = [(beta * (now - then), label) for (now, then), label in zip(pairs, desirable, strict=True)]
        good, bad = ([reward for reward, label in rewards if label is kind] for kind in (True, False))
        return BranchRatings(
            right_desirable=sum(reward > 0 for reward in good),
            right_undesirable=sum(reward < 0 for reward in bad),
            reward_desirable=math.fsum(good) / len(good) if good else None,
            reward_undesirable=math.fsum(bad) / len(bad) if bad else None,
        )

    return RatingResult(
        desirable=sum(desirable),
        undesirable=len(desirable) - sum(desirable),
        branches={one: of(one) for one in _IN_ORDER_OF_TRAINING if one in likelihoods and one != reference},
        reference=reference,
        beta=beta,
    )


def rating_words(result: RatingResult, names: Mapping[Branch, str]) -> list[str]:
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
    words = [
        f"Accuracy {result.accuracy:.0%}: the reward has the sign of the label in {result.right:,} of "
        f"{result.completions:,} held-out completions ({', '.join(sides)}); the true share lies between {low:.0%} and "
        f"{high:.0%} (95% interval).",
        f"The reward is beta {result.beta:g} times the log-probability that a completion gained since "
        f"{names[result.reference]}: above zero is right for a desirable one, below zero for an undesirable one.",
    ]
    if tuned.difference is None:
        label = "desirable" if result.desirable else "undesirable"
        mean = tuned.reward_desirable if result.desirable else tuned.reward_undesirable
        words.append(
            f"Mean reward {mean:+.3f}. Every completion is {label}, so this does not show whether the model separates good from bad."
        )
    else:
        words.append(
            f"Mean reward {tuned.reward_desirable:+.3f} of desirable and {tuned.reward_undesirable:+.3f} of undesirable "
            f"completions, difference {tuned.difference:+.3f}."
        )
    return words


def rating_cells(one: BranchRatings, result: RatingResult) -> list[str]:
    """Return a branch's accuracy, its mean rewards and their difference, as the cells of a table."""
    rewards = (one.reward_desirable, one.reward_undesirable, one.difference)
    return [f"{one.right / result.completions:.0%}", *("–" if value is None else f"{value:+.3f}" for value in rewards)]


RATING_COLUMNS = ("Accuracy", "Reward, desirable", "Reward, undesirable", "Difference")

"""Figures of an evaluation as text: forgetting, and preferences with their uncertainty."""

import pytest

from loratory.engine.evaluation.job import (
    BranchLoss,
    EvaluationResult,
    describe_forgetting,
)
from loratory.engine.evaluation.preference import (
    PairLikelihoods,
    describe_accuracy,
    describe_flips,
    interval,
    measure_preference,
)
from loratory.engine.evaluation.worker.scores import mean_scores, score_answer


def test_preferences_are_counted_with_their_uncertainty():
    preference = measure_preference(
        {
            "base": PairLikelihoods([-2.0, -2.0, -2.0], [-1.0, -1.0, -3.0]),
            "tuned": PairLikelihoods([-1.0, -1.0, -4.0], [-2.0, -3.0, -3.0]),
        },
        [(1, 1), (1, 1), (8, 1)], "base", 0.5,
    )  # fmt: skip

    assert (preference.branches["base"].preferred, preference.branches["tuned"].preferred) == (1, 2)
    assert preference.branches["tuned"].preferred_per_token == 3  # the third chosen answer is long
    assert (preference.branches["tuned"].gained_pairs, preference.flips["base"]) == (2, (2, 1))
    assert preference.branches["tuned"].reward_margin == pytest.approx(0.5 * (2 + 3 - 2) / 3)
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert "may be chance" in describe_flips(preference, "base", "the base model")
    certain = preference.model_copy(update={"flips": {"base": (9, 0)}})
    assert "that is clear" in describe_flips(certain, "base", "the base model")
    assert (
        "Preference accuracy 67%: since the base model" in describe_accuracy(preference, {"base": "the base model"})[0]
    )
    without = preference.model_copy(update={"branches": {"tuned": preference.branches["base"]}})
    assert "Preference accuracy 33%: the chosen answer is likelier in 1 of 3" in describe_accuracy(without, {})[0]


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (2.06, "forgot 3%"),
        (2.006, "forgot 0.3%"),
        (2.0, "no forgetting"),
        (2.0008, "no forgetting"),
        (1.5, "no forgetting"),
    ],
)
def test_forgetting_is_the_relative_rise_of_the_loss(loss, text):
    losses = {"base": BranchLoss.from_loss(2.0, 10), "tuned": BranchLoss.from_loss(loss, 10)}
    result = EvaluationResult(losses=losses, rows=1, scores={}, general_losses=losses)

    assert describe_forgetting(result.forgetting) == text
    assert result.gain == pytest.approx(-result.forgetting)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_forgetting_of_a_model_that_diverged_is_not_given_a_figure(loss):
    losses = {"base": BranchLoss.from_loss(2.0, 10), "tuned": BranchLoss(loss=loss, perplexity=1.0, tokens=10)}

    assert EvaluationResult(losses=losses, rows=1, scores={}, general_losses=losses).forgetting is None


def test_words_of_any_script_count():
    assert score_answer("こんにちは 世界", "世界 こんにちは").rouge_l == pytest.approx(0.5)
    assert score_answer("Ранг МАЛ.", "ранг мал").rouge_l == 1.0


def test_exact_means_the_same_but_for_white_space():
    assert score_answer(" a\n b ", "a b").exact
    assert not score_answer("a B", "a b").exact


def test_means_are_over_rows():
    mean = mean_scores([score_answer("abc", "abc"), score_answer("yes", "no")])

    assert (mean.exact, mean.chrf, mean.rouge_l, mean.rows) == (0.5, 0.5, 0.5, 2)  # sacrebleu counts to 100

"""Test sets: scores with intervals, pass@k, what turned right and wrong, and tags."""

import math

import pytest

from loratory.engine.config.results import TestSet
from loratory.engine.evaluation.samples import (
    AnswerSample,
    PromptSamples,
    bootstrap,
    describe_test,
    measure_test,
    pass_at_k,
)
from loratory.engine.scoring.base import Verdict

NUMBER = TestSet.model_validate({"source": "/data/sums.jsonl", "scorers": [{"scorer": "number"}], "samples": 4})


def samples_of(*scores, row=0, tag=""):
    answers = tuple(
        AnswerSample.from_verdicts("so", 3, (Verdict(score),), NUMBER.scorers, is_cut=False) for score in scores
    )
    return PromptSamples(row=row, prompt="2 + 2?", reference="4", answers=answers, tag=tag)


def test_pass_at_k_is_the_chance_that_one_of_k_passes():
    assert pass_at_k(4, 0, 1) == 0.0
    assert pass_at_k(4, 1, 1) == pytest.approx(0.25)
    assert pass_at_k(4, 1, 4) == 1.0
    # Of 10 answers 3 pass: one minus the chance of two draws among the seven that fail.
    assert pass_at_k(10, 3, 2) == pytest.approx(1 - (7 / 10) * (6 / 9))


def test_a_bootstrap_interval_is_about_that_of_the_normal_distribution():
    values = [float(number % 2) for number in range(400)]
    low, high = bootstrap(values)

    half = 1.96 * 0.5 / math.sqrt(400)
    assert low == pytest.approx(0.5 - half, abs=0.015)
    assert high == pytest.approx(0.5 + half, abs=0.015)
    assert bootstrap([1.0] * 20) == (1.0, 1.0)
    assert bootstrap(values) == (low, high), "the same values give the same interval"


def test_a_test_compares_base_and_tuned_prompt_by_prompt():
    base = [samples_of(0.0, row=n) for n in range(10)] + [samples_of(1.0, row=10), samples_of(1.0, row=11)]
    tuned = [samples_of(1.0, row=n) for n in range(9)] + [
        samples_of(0.0, row=9),
        samples_of(1.0, row=10),
        samples_of(0.0, row=11),
    ]

    result = measure_test(NUMBER, {"base": base, "tuned": tuned})

    assert result.flips == (9, 1)
    # McNemar's exact test is a sign test of the ten prompts that turned: 2 * (1 + 10) / 2**10.
    assert result.p == pytest.approx(22 / 1024)
    assert [prompt.row for prompt in result.prompts["tuned"]][:2] == [9, 11], "the worst first"
    assert [prompt.row for prompt in result.prompts["base"]][:2] == [9, 11], "in the same order"
    assert list(describe_test(result, {"base": "base", "tuned": "tuned"})) == [
        "sums.jsonl, 12 prompts: base 0.17 (0.00 to 0.42), tuned 0.83 (0.58 to 1.00); in brackets the 95% interval.",
        "9 turned right and 1 turned wrong, not chance (McNemar's p 0.021).",
    ]


def test_several_answers_give_pass_at_k_and_a_majority():
    result = measure_test(NUMBER, {"base": [samples_of(1.0, 0.0, 0.0, 0.0), samples_of(0.0, 0.0, 0.0, 0.0)]})

    assert result.branches["base"].pass_at_1 == pytest.approx(1 / 8)
    assert result.branches["base"].pass_at_k == pytest.approx(1 / 2)
    assert (result.flips, result.p) == (None, None)


def test_answers_without_a_score_count_as_nothing_and_are_named():
    result = measure_test(NUMBER, {"tuned": [samples_of(None, 1.0), samples_of(1.0, 1.0)]})

    assert result.branches["tuned"].score == pytest.approx(0.75)
    assert result.branches["tuned"].missing_scores == 1
    assert "1 answers of tuned have no score, and count as 0." in describe_test(result, {"tuned": "tuned"})


def test_scores_are_grouped_by_tag():
    rows = [samples_of(1.0, tag="easy"), samples_of(0.0, tag="easy"), samples_of(0.0, tag="hard")]
    assert measure_test(NUMBER, {"tuned": rows}).branches["tuned"].by_tag == {"easy": 0.5, "hard": 0.0}

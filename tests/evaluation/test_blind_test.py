"""The blind test: a fair order, an exact test, and saved judgements."""

import random
from datetime import UTC, datetime

import pytest

from loratory.engine.evaluation.blind_test import (
    Judgement,
    Pair,
    count_judgements,
    draw_pair,
    judgements_file,
    read_judgements,
    save_judgement,
    sign_test,
)

ANSWERS = {"base": "Alpha.", "tuned": "It scales the update."}


def judgement(left: str, verdict: str) -> Judgement:
    right = "tuned" if left == "base" else "base"
    pair = Pair(prompt="What?", left=left, right=right, answers=ANSWERS)
    return Judgement(pair=pair, verdict=verdict, time=datetime.now(UTC))


@pytest.mark.parametrize(
    ("wins", "losses", "chance"),
    # Two-sided binomial tests as scipy.stats.binomtest(wins, wins + losses) gives them.
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (9, 3, 0.14599609375), (3, 9, 0.14599609375), (4, 4, 1.0), (15, 4, 0.019210815429687)],
)  # fmt: skip
def test_the_sign_test_is_exact(wins, losses, chance):
    assert sign_test(wins, losses) == pytest.approx(chance, abs=1e-12)


def test_a_thousand_judgements_do_not_overflow():
    assert sign_test(3000, 2000) < 1e-40


def test_either_answer_stands_left_as_often_as_right():
    draw = random.Random(1)

    left = sum(draw_pair("What?", "", ANSWERS, draw).left == "tuned" for _ in range(2000))

    assert 900 < left < 1100


def test_what_is_preferred_is_an_answer_and_not_a_side():
    judgements = [
        judgement("base", "right"),
        judgement("tuned", "left"),
        judgement("base", "left"),
        judgement("tuned", "equal"),
    ]
    judgements += [judgement("tuned", "neither"), judgement("base", "right")]

    counts = count_judgements(judgements, "base", "tuned")

    assert (counts.first_preferred, counts.second_preferred, counts.equal, counts.neither) == (1, 3, 1, 1)
    assert (counts.total, counts.decisive, counts.p_value) == (6, 4, sign_test(1, 3))


def test_judgements_about_other_branches_do_not_count():
    assert count_judgements([judgement("base", "left")], "tuned", "second").total == 0


def test_equal_words_are_seen_whatever_the_white_space():
    assert Pair(prompt="", left="base", right="tuned", answers={"base": "a b", "tuned": " a\nb"}).same_words
    assert not Pair(prompt="", left="base", right="tuned", answers=ANSWERS).same_words


def test_judgements_are_appended_and_a_damaged_line_is_skipped(tmp_path):
    file = judgements_file(tmp_path, "step-40")
    first, second = judgement("base", "right"), judgement("tuned", "equal")
    save_judgement(file, first)
    with file.open("ab") as lines:
        lines.write(b'{"pair": {\n')
    save_judgement(file, second)

    assert file == tmp_path / "evaluations" / "blind-test-step-40.jsonl"
    assert read_judgements(file) == (first, second)
    assert read_judgements(judgements_file(tmp_path, None)) == ()

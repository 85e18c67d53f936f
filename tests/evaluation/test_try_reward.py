"""Try reward: verdicts on made-up answers, and deliberately bad answers."""

import json

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.data.workshop.operations import rows_text
from loratory.engine.errors import ConfigError, DatasetError
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples
from loratory.engine.evaluation.try_reward import (
    BadAnswer,
    TryRewardJob,
    TryRewardResult,
    bad_answers,
    choices_of,
    judge,
)
from loratory.engine.scoring.base import Verdict
from tests.any_scorer import scorer_from
from tests.invented_runs import a_config


def tried(*groups, bad=(0.0,), cut=False, highest=1.0, reasons=""):
    """Return a result whose groups have these rewards; None is an answer without a score."""

    def answer(reward):
        verdict = Verdict(reward, reasons if reward is None else "")
        passes = reward is not None and reward >= 0.5
        return AnswerSample(text="so", tokens=10, is_cut=cut, verdicts=(verdict,), reward=reward, passes=passes)

    prompts = [
        PromptSamples(row=number, prompt="2 + 2?", reference="4", answers=tuple(map(answer, rewards)))
        for number, rewards in enumerate(groups)
    ]
    names = ("the empty answer", "a very long answer")
    return TryRewardResult(
        prompts=tuple(prompts),
        bad_answers=tuple(BadAnswer(name=name, text="", reward=reward) for name, reward in zip(names, bad, strict=False)),
        scorers=("Number",), highest=highest, generation_seconds=8.0, scoring_seconds=2.0, forward_seconds=1.0,
    )  # fmt: skip


MIXED, ZERO, FULL = (0.0, 1.0, 0.0, 1.0), (0.0,) * 4, (1.0,) * 4


@pytest.mark.parametrize(
    ("result", "kind", "reason"),
    [
        (tried(*[MIXED] * 12, *[ZERO] * 8), "can_learn", "The answers of 12 of 20 prompts differ in their reward."),
        (tried(MIXED, *[ZERO] * 19), "too_hard", "19 of 20 groups are all zero."),
        (tried(*[ZERO] * 20), "too_hard", "20 of 20 groups are all zero."),
        (tried(*[(0.3,) * 4] * 19, MIXED), "too_hard", "19 of 20 groups have no difference."),
        (tried(*[FULL] * 19, MIXED), "solved", "19 of 20 groups have no difference, and the mean reward is 0.97 of 1.00."),
        (tried(*[MIXED] * 20, bad=(0.8, 0.0)), "hackable", "The empty answer earns 0.80 of 1.00, the model's answers 0.50."),
        (tried(*[MIXED] * 20, bad=(0.0, 1.0)), "hackable", "A very long answer earns 1.00 of 1.00, the model's answers 0.50."),
        (tried(*[FULL] * 20, bad=(1.0, 1.0)), "constant", "Every answer earns 1.00, the deliberately bad ones too."),
        (tried(*[(0.4,) * 4] * 20, bad=(0.4, 0.4)), "constant", "Every answer earns 0.40, the deliberately bad ones too."),
        (
            tried(*[(None, 1.0, 0.0, None)] * 20, reasons="It raised KeyError."),
            "failing", "Number gave no score for 40 of 80 answers: It raised KeyError.",
        ),
        (tried(*[(None,) * 4] * 20), "failing", "Number gave no score for 80 of 80 answers."),
    ],
)  # fmt: skip
def test_a_try_is_judged_with_its_reason(result, kind, reason):
    assert judge(result)[:2] == (kind, reason)


def test_a_learnable_reward_is_shown_with_what_wastes_steps():
    verdict = judge(tried(*[MIXED] * 8, *[ZERO] * 12, bad=(0.3, 0.0), cut=True))

    assert verdict.title == "Can learn"
    assert verdict.cures == (
        "12 of 20 groups have no difference, so more than half of each step is lost.",
        "100% of the answers are cut at the limit; raise max_completion_length.",
        "The empty answer earns 0.30, more than the model's answers (0.20): watch what the answers become.",
    )


def test_cut_answers_are_named_among_the_cures_of_a_task_that_is_too_hard():
    assert "Raise max_completion_length: most answers are cut." in judge(tried(*[ZERO] * 20, cut=True)).cures
    assert len(judge(tried(*[ZERO] * 20)).cures) == 3


def test_kept_prompts_are_those_with_a_difference_and_what_is_held_out_stays_so():
    result = tried(MIXED, ZERO, FULL, (0.2, 0.4)).model_copy(update={"held_out": (5, 7)})

    drop, split = result.keep_sometimes(9)

    assert result.sometimes_right == [0, 3]
    assert (drop.kind, rows_text(drop.rows)) == ("drop", "2-3,5,7,9")
    assert (split.kind, rows_text(split.rows)) == ("split", "6,8")


def test_nothing_is_kept_where_no_prompt_was_sometimes_right():
    with pytest.raises(DatasetError, match="None of 2 prompts was sometimes right"):
        tried(ZERO, FULL).keep_sometimes(2)


def test_shares_are_those_of_answers_and_of_prompts():
    result = tried(MIXED, ZERO, (1.0, 0.0, 0.0, 0.0), FULL)

    assert result.pass_at_1 == pytest.approx((2 + 0 + 1 + 4) / 16)
    assert result.pass_at_all == pytest.approx(3 / 4)
    assert result.tied == 2


def test_a_step_takes_its_share_of_the_rollout_and_three_passes():
    result = tried(*[MIXED] * 20)  # 10 s for 20 prompts, 1 s a pass
    config = a_config(
        training__per_device_train_batch_size=4, training__gradient_accumulation_steps=1, training__beta=0
    )
    twice = a_config(
        training__per_device_train_batch_size=4, training__gradient_accumulation_steps=1, training__beta=0.04,
        training__num_iterations=2, training__objective="grpo", training__rewards=[{"scorer": "number"}],
    )  # fmt: skip

    assert result.step_seconds(config) == pytest.approx(4 / 20 * (10 + 3))
    assert result.step_seconds(twice) == pytest.approx(4 / 20 * (10 / 2 + 3 + 1 + 1 / 2))


def test_bad_answers_have_the_form_and_not_the_content():
    answers = bad_answers("What is 3 + 4?", "So 3 + 4 is 7.\n#### 7", ["7", "9"], 100)

    assert answers["the empty answer"] == ""
    assert answers["the prompt repeated"] == "What is 3 + 4?"
    assert answers["all choices at once"] == "7, 9"
    assert len(answers["a very long answer"].split()) >= 200
    form = answers["the reference's format without content"]
    assert "####" in form
    assert not any(letter.isalnum() for letter in form)


@pytest.mark.parametrize(
    ("reference", "form"),
    [
        ('{"name": "Ada", "age": 36, "tags": ["x"], "more": {"ok": true, "none": null}}',
         {"name": "", "age": 0, "tags": [], "more": {"ok": False, "none": None}}),
        ("[1, 2]", []),
    ],
)  # fmt: skip
def test_the_form_of_json_is_its_keys(reference, form):
    answer = bad_answers("", reference, [], 10)["the reference's format without content"]
    assert json.loads(answer) == form


def test_the_form_of_markup_is_its_tags():
    form = bad_answers("", "<think>two words</think><answer>\\boxed{42}</answer>", [], 10)
    assert form["the reference's format without content"] == "<think> </think><answer>\\boxed{}</answer>"


def test_all_choices_are_those_of_the_row_or_else_the_references():
    number, choice = scorer_from({"scorer": "number"}), scorer_from({"scorer": "choice"})
    columns = {"choices": ["yes", "no"]}

    assert choices_of(columns, ["b", "a", "b", ""], [number]) == ["b", "a"]
    assert choices_of(columns, ["b"], [number, choice]) == ["yes", "no"]
    assert choices_of({}, ["b"], [choice]) == ["b"]


def test_an_answer_passes_with_half_of_each_score_and_penalties_aside():
    scorers = [scorer_from({"scorer": "number"}), scorer_from({"scorer": "length", "weight": -0.5})]

    def answer(*scores):
        verdicts = tuple(Verdict(score) for score in scores)
        return AnswerSample.from_verdicts("so", 1, verdicts, scorers, is_cut=False)

    assert (answer(1.0, 1.0).passes, answer(1.0, 1.0).reward) == (True, 0.5)
    assert (answer(0.4, 0.0).passes, answer(0.4, 0.0).reward) == (False, 0.4)
    assert (answer(None, None).passes, answer(None, None).reward) == (False, None)


def test_a_try_of_a_start_that_is_not_there_is_refused_rather_than_of_the_base(home):
    mapping = {"model": {"id": "tiny"}, "adapter": {"warm_start": "nowhere"}, "dataset": {"source": "rows.jsonl"}}
    training = {"objective": "grpo", "rewards": [{"scorer": "equals"}]}

    with pytest.raises(ConfigError, match="nowhere holds no adapter"):
        TryRewardJob(home, config_from_mapping(mapping | {"training": training})).run()

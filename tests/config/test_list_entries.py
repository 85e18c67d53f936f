"""What is wrong with an entry of a list is named by its number and its setting."""

import pytest

from loratory.engine.config.load import config_from_mapping, section_from_mapping
from loratory.engine.config.run import DatasetConfig
from loratory.engine.errors import ConfigError

BASE = {"model": {"id": "smollm2-135m-instruct"}, "dataset": {"source": "sample:loratory-sums"}}


def problems_of(**sections):
    with pytest.raises(ConfigError) as error_info:
        config_from_mapping({**BASE, **sections})
    return [(problem.field, problem.message) for problem in error_info.value.problems]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([{"scorer": "regex"}], "entry 1, pattern: it is missing and has no default."),
        ([{"scorer": "number"}, {"scorer": "number", "tolerance": 5}], "entry 2, tolerance: 5 is out of range; it must be below 1.0."),
        ([{"scorer": "number", "which": "last"}], "entry 1, which: unknown setting."),
        ([{}], "it has no 'scorer', which names it."),
        ("number", "'number' is not a list."),
    ],
)  # fmt: skip
def test_a_wrong_reward_is_named_alone(rewards, message):
    assert problems_of(training={"objective": "grpo", "rewards": rewards}) == [("training.rewards", message)]


def test_an_unknown_scorer_is_answered_with_those_that_exist_however_long_its_name():
    ((field, message),) = problems_of(training={"objective": "grpo", "rewards": [{"scorer": "x" * 10_000}]})
    assert field == "training.rewards"
    assert "'number'" in message
    assert len(message) < 700


def test_a_scorer_of_a_test_set_is_named_as_well():
    tests = [{"source": "rows.jsonl", "scorers": [{"scorer": "number", "tolerance": 9}]}]
    ((field, message),) = problems_of(evaluation={"tests": tests})
    assert (field, message.split(":")[0]) == ("evaluation.tests", "entry 1, tolerance")


def test_an_entry_of_a_section_by_itself_is_named_in_the_same_way():
    with pytest.raises(ConfigError) as error_info:
        section_from_mapping(DatasetConfig, {"source": "rows.jsonl", "scorers": [{"scorer": "regex", "pattern": ""}]})
    (problem,) = error_info.value.problems
    assert (problem.field, problem.message) == ("scorers", "entry 1, pattern: it is empty.")


@pytest.mark.parametrize("where", ["slurm", "jobs"])
def test_a_judge_with_a_key_is_refused_elsewhere(where):
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?"}
    with_key = {**judge, "key_variable": "JUDGE_API_KEY"}

    def settings(scorer, place):
        return {"training": {"objective": "grpo", "rewards": [scorer]}, "run": {"where": place}}

    for scorer, place in ((judge, where), (with_key, "local")):
        config_from_mapping({**BASE, **settings(scorer, place)})
    ((field, message),) = problems_of(**settings(with_key, where))
    assert field == "run.where"
    assert "the judge's key, JUDGE_API_KEY, does not leave this machine" in message

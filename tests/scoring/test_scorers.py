"""Scorers: their examples are their tests, settings are checked early, and whatever goes wrong is a reason."""

import json

import pytest
from pydantic import ValidationError

from loratory.engine.scoring.base import SandboxedScorer, ScoredAnswer, Scorer, Verdict, checked
from loratory.engine.scoring.registry import SCORERS
from tests.any_scorer import scorer_from
from tests.scoring.more_examples import MORE_EXAMPLES

PURE = [name for name, kind in SCORERS.items() if not issubclass(kind, SandboxedScorer) and name != "judge"]
EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name in PURE
    for number, example in enumerate((*SCORERS[name].examples, *MORE_EXAMPLES[name]))
]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_has_its_score(name, example):
    scorer = scorer_from({"scorer": name, **example.settings})

    verdict = scorer.score(ScoredAnswer("", example.answer, example.columns))

    assert verdict.score == (None if example.score is None else pytest.approx(example.score)), verdict.reason
    assert verdict.reason or verdict.score is not None


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_describes_itself_and_has_examples(name):
    kind = SCORERS[name]

    assert 1 <= len(kind.examples) <= 4
    assert len(kind.examples) + len(MORE_EXAMPLES[name]) >= 5
    assert kind.label
    assert kind.sentence.endswith(".")
    assert [field for field, value in kind.model_fields.items() if not value.description] == ["scorer"]


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_is_read_back_as_it_was_written(name):
    scorer = scorer_from({"scorer": name, **SCORERS[name].examples[0].settings, "weight": 0.5})

    assert scorer_from(json.loads(scorer.model_dump_json())) == scorer


BAD_SETTINGS = {
    "a pattern that does not compile": {"scorer": "regex", "pattern": "("},
    "a column without a group": {"scorer": "regex", "pattern": "a", "column": "answer"},
    "an empty band": {"scorer": "length", "at_least": 5, "at_most": 4},
    "a schema that is not JSON": {"scorer": "json_schema", "json_schema": "{"},
    "a schema of an unknown type": {"scorer": "json_schema", "json_schema": '{"type": "text"}'},
    "a schema elsewhere": {"scorer": "json_schema", "json_schema": '{"$ref": "http://localhost/x"}'},
    "an unknown scorer": {"scorer": "vibes"},
    "an unknown setting": {"scorer": "equals", "speed": 1},
    "an endless weight": {"scorer": "equals", "weight": float("inf")},
    "a file without a name": {"scorer": "file", "path": ""},
}


@pytest.mark.parametrize("settings", BAD_SETTINGS.values(), ids=list(BAD_SETTINGS))
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValidationError):
        scorer_from(settings)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -0.1, 1.1, "1", [1], 10**400, Verdict("1"), Verdict(float("nan")), None]
)
def test_what_is_not_a_score_is_none_with_a_reason(value):
    verdict = checked(value)

    assert verdict.score is None
    assert verdict.reason


@pytest.mark.parametrize("name", PURE)
def test_hostile_answers_never_raise_and_earn_nothing(name):
    example = next(example for example in (*SCORERS[name].examples, *MORE_EXAMPLES[name]) if example.score == 1)
    scorer = scorer_from({"scorer": name, **example.settings})
    for answer in (
        "",
        " \n",
        "\0",
        "\ud800",
        "{" * 5000,
        "<think>" * 5000,
        "```json\n" * 500,
        "A B C D " * 500,
        "%s" * 500,
    ):
        verdict = scorer.score(
            ScoredAnswer("", answer, {**example.columns, "answer": example.columns.get("answer", "x")})
        )
        assert verdict.score is None or verdict.score < 0.2 or name == "length", (answer[:20], verdict)


def test_a_scorer_that_raises_is_a_reason():
    class Broken(Scorer):
        scorer: str = "broken"

        def rate(self, row):
            raise LookupError("no such thing")

    assert Broken().score(ScoredAnswer("", "x")) == (None, "The scorer failed: LookupError: no such thing.")

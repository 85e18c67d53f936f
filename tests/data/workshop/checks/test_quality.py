"""Quality: what scorers give the answers of rows."""

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.check import finish
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.run import row_check_steps
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.errors import ConfigError
from tests.data.checks import write_rows
from tests.data.workshop.checks.reports import talk
from tests.local_endpoint import completion, serving


@pytest.fixture
def quality(tmp_path):
    """Return what the check finds in rows, with these scorers."""

    def check(rows, *scorers, **settings):
        source = str(write_rows(tmp_path / "rows.jsonl", rows))
        config = DatasetConfig(source=source, eval_fraction=0.0, scorers=scorers)
        steps = row_check_steps(config, SourceOptions(), CheckSettings(**settings), ["quality"], seed=42)
        (outcome,) = finish(steps).checks
        return outcome

    return check


SUMS = [
    {"instruction": f"What is {n} + {n}?", "output": f"It is {n + n + n % 2}.", "reference": 2 * n} for n in range(150)
]


def test_each_row_has_a_score_and_those_below_are_found(quality):
    outcome = quality(SUMS, {"scorer": "number", "column": "reference"})

    assert len(outcome.scores) == 150
    assert outcome.all_rows == tuple(range(1, 150, 2))
    assert outcome.kinds == {"below 0.5": 75}
    assert outcome.findings[0].why.startswith("0.00: Number 0.00")


def test_scores_add_up_by_weight_to_a_share_of_full_marks(quality):
    number, length = {"scorer": "number", "column": "reference", "weight": 3.0}, {"scorer": "length", "at_most": 1000}
    outcome = quality(SUMS[:2], number, length, score_below=0.3)

    assert outcome.scores == {0: 1.0, 1: 0.25}
    assert outcome.all_rows == (1,)


def test_the_last_answer_is_scored_by_what_comes_before_it(quality):
    rows = [{"messages": [*talk("Hello?", "Hi.")["messages"], *talk("A city?", "Paris.")["messages"]]}]
    with serving((200, completion({"reason": "It is one.", "score": 9}))) as endpoint:
        judge = {"scorer": "judge", "endpoint": endpoint.url, "model": "m", "rubric": "Is it a city?"}
        outcome = quality(rows, judge, score_below=0.95)

    assert outcome.scores == {0: 0.9}
    assert '"prompt": "Hello?\\nHi.\\nA city?", "answer": "Paris."' in endpoint.requests[0]["messages"][1]["content"]
    assert outcome.findings[0].why == "0.90: Judge 0.90 It is one."


def test_a_row_without_a_score_stays_and_is_counted(quality):
    outcome = quality([{**SUMS[0], "reference": ""}, SUMS[1]], {"scorer": "number", "column": "reference"})

    assert outcome.kinds == {"without a score": 1, "below 0.5": 1}
    assert outcome.all_rows == (1,)
    assert "The row has no reference." in outcome.findings[0].why


def test_what_a_person_wrote_runs_in_the_sandbox(quality, tmp_path):
    file = tmp_path / "score.py"
    file.write_text(
        "import os\ndef score(prompt, answer, **columns): return float('SECRET_API_KEY' in os.environ or len(answer) / 10)"
    )
    outcome = quality(SUMS[:1], {"scorer": "file", "path": str(file)})
    assert outcome.scores == {0: 0.8}


def test_prompts_alone_have_no_answer_and_no_scorer_finds_nothing(quality):
    assert quality([{"prompt": "Why?"}], {"scorer": "length"}).scores == {}
    assert quality(SUMS[:2]).kinds == {}


def test_a_missing_key_is_an_error_and_not_one_of_each_row(quality, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?", "key_variable": "JUDGE_API_KEY"}
    with pytest.raises(ConfigError, match="JUDGE_API_KEY is not set here"):
        quality(SUMS[:1], judge)

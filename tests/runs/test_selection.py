import csv
import io
from typing import Any

from loratory.engine.runs.summary import (
    RunQuery,
    RunSummary,
    common_tests,
    differing_settings,
    select_runs,
    summaries_csv,
)
from loratory.engine.runs.test_scores import TestScore
from tests.supervision.fake_runs import config_for


def row(number: int, **values: Any) -> RunSummary:
    defaults: dict[str, Any] = {"id": f"run-{number}", "owner": "ann", "name": f"Run {number}", "state": "completed",
                                   "created": float(number)}  # fmt: skip
    return RunSummary(**{**defaults, **values})


def ids(rows) -> list[str]:
    return [summary.id for summary in rows]


def test_every_word_must_be_somewhere_in_any_case():
    rows = [
        row(1, name="Medical notes", model="Qwen/Qwen3-0.6B"),
        row(2, name="Medical mail", model="smollm2"),
        row(3, note="about MEDICAL things", tags=("qwen",)),
    ]
    assert ids(select_runs(rows, RunQuery(terms="medical QWEN"))) == ["run-3", "run-1"]
    assert ids(select_runs(rows, RunQuery(terms="nothing"))) == []
    assert len(select_runs(rows, RunQuery())) == 3


def test_filters_restrict_and_combine():
    rows = [
        row(1, state="failed", method="LoRA", model="a"),
        row(2, state="completed", method="QLoRA", model="a", tags=("x", "y")),
        row(3, state="completed", method="LoRA", model="b", tags=("x",)),
    ]
    assert ids(select_runs(rows, RunQuery(states=("completed",)))) == ["run-3", "run-2"]
    assert ids(select_runs(rows, RunQuery(states=("completed",), methods=("LoRA",)))) == ["run-3"]
    assert ids(select_runs(rows, RunQuery(models=("a",), tags=("x", "y")))) == ["run-2"]


def test_rows_without_a_value_come_last_in_either_direction():
    rows = [row(1, eval_loss=2.0), row(2), row(3, eval_loss=1.0)]

    assert ids(select_runs(rows, RunQuery(sort="eval_loss", descending=False))) == ["run-3", "run-1", "run-2"]
    assert ids(select_runs(rows, RunQuery(sort="eval_loss", descending=True))) == ["run-1", "run-3", "run-2"]


def test_names_sort_as_people_read_them():
    rows = [row(1, name="beta"), row(2, name="Alpha")]
    assert ids(select_runs(rows, RunQuery(sort="name", descending=False))) == ["run-2", "run-1"]


def test_held_out_losses_are_ordered_among_comparable_runs():
    rows = [row(1, eval_loss=2.0), row(2, eval_loss=0.1, objective="DPO"), row(3, eval_loss=1.0)]
    for descending, order in ((False, ["run-3", "run-1", "run-2"]), (True, ["run-1", "run-3", "run-2"])):
        assert ids(select_runs(rows, RunQuery(sort="eval_loss", descending=descending))) == order


def test_only_settings_that_differ_are_shown():
    configs = {
        "a": config_for("first", training={"learning_rate": 1e-4}, adapter={"r": 8}),
        "b": config_for("second", training={"learning_rate": 2e-4}, adapter={"r": 8}),
        "c": config_for("third", training={"learning_rate": 1e-4}, adapter={"r": 16}),
    }
    differences = differing_settings(configs)

    assert differences == {
        "adapter.r": {"a": 8, "b": 8, "c": 16},
        "training.learning_rate": {"a": 1e-4, "b": 2e-4, "c": 1e-4},
    }
    assert list(differences) == ["adapter.r", "training.learning_rate"]
    assert differing_settings({"a": configs["a"]}) == {}


def test_a_table_never_smuggles_a_formula_into_a_spreadsheet():
    text = summaries_csv([row(1, name="=cmd|'/c calc'!A1", tags=("a", "b"))])
    header, line = text.splitlines()

    assert header.startswith("id,owner,name")
    assert "'=cmd" in line
    assert "a b" in line


def with_scores(number: int, **tests: float) -> RunSummary:
    return row(number, tests={name: TestScore(score=score, low=0.0, high=1.0) for name, score in tests.items()})


def test_runs_are_ordered_by_their_score_on_a_test_set():
    rows = [with_scores(1, sums=0.2), row(2), with_scores(3, sums=0.9, code=0.1)]

    assert ids(select_runs(rows, RunQuery(sort="sums"))) == ["run-3", "run-1", "run-2"]
    assert ids(select_runs(rows, RunQuery(sort="sums", descending=False))) == ["run-1", "run-3", "run-2"]
    assert common_tests(rows) == ["sums", "code"]
    assert common_tests(rows, 1) == ["sums"]


def test_a_table_has_columns_for_each_test_set():
    rows = list(csv.DictReader(io.StringIO(summaries_csv([with_scores(1, sums=0.2), row(2)]))))

    assert [rows[0][name] for name in ("sums", "sums low", "sums high")] == ["0.2", "0.0", "1.0"]
    assert rows[1]["sums"] == ""
    assert "tests" not in rows[0]
    assert "'=1+1" in summaries_csv([with_scores(1, **{"=1+1": 0.5})]).splitlines()[0], "names are not formulas"

"""Sets as tables: windows of rows in order, states, edits and replacements, lists and downloads."""

import json

import pytest
from pydantic import ValidationError

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import SetQuestion
from loratory.engine.data.source import SetRows, SourceOptions
from loratory.engine.data.workshop.exchange import export_version
from loratory.engine.data.workshop.sets import find_set, find_version, set_names
from loratory.engine.data.workshop.table import SetTables
from loratory.engine.errors import DatasetError
from loratory.engine.paths import LoratoryHome


@pytest.fixture
def home(tmp_path):
    home = LoratoryHome(tmp_path / "home")
    home.make_writable()
    return home


@pytest.fixture
def query(home):
    tables = SetTables(home, SourceOptions(home=home))

    def answer(do, **values):
        steps = tables.answer(SetQuestion(do=do, **values))
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    return answer


@pytest.fixture
def name(query, tmp_path):
    lines = [json.dumps({"instruction": f"Question {n}?", "output": f"Ännswer {n}" * n}) for n in range(1, 10)]
    path = tmp_path / "My rows (1).jsonl"
    path.write_text("\n".join([*lines, "{not JSON"]) + "\n")
    return query("make", dataset=DatasetConfig(source=str(path)))["name"]


def numbers(answer):
    return [row["row"] for row in answer["rows"]]


def change(query, name, **operation):
    return query("apply", name=name, operations=[operation])


def test_a_set_is_named_after_its_file_and_made_again_under_another_name(query, name, home):
    assert name == "my-rows-1"
    assert query("make", dataset=DatasetConfig(source="sample:loratory-faq"))["name"] == "loratory-faq"
    assert query("make", dataset=DatasetConfig(source="sample:loratory-faq"))["name"] == "loratory-faq-2"
    assert set_names(home) == ["loratory-faq", "loratory-faq-2", "my-rows-1"]


def test_windows_are_sorted_and_filtered(query, name):
    assert numbers(query("rows", name=name, first=8)) == [9, 10]
    assert numbers(query("rows", name=name, sort="-row", count=2)) == [10, 9]
    assert numbers(query("rows", name=name, sort="-characters", count=2)) == [9, 8]
    answer = query("rows", name=name, text="ÄNNSWER 7")
    assert numbers(answer) == [7]
    assert answer["count"] == 1
    assert answer["rows"][0]["parts"][0] == ("instruction", "Question 7?")
    assert query("numbers", name=name, first=2, count=3)["numbers"] == [3, 4, 5]


def test_an_unreadable_row_has_its_reason(query, name):
    answer = query("row", name=name, row=10)
    assert "JSON" in answer["problem"]
    assert answer["record"] == {}
    change(query, name, kind="edit", row=10, record={"instruction": "Now?", "output": "Yes."})
    assert query("row", name=name, row=10)["record"] == {"instruction": "Now?", "output": "Yes."}
    assert query("row", name=name, row=10)["problem"] == ""


def test_states_follow_the_log(query, name):
    change(query, name, kind="exclude", rows="2-4")
    change(query, name, kind="flag", rows="3", text="odd")
    change(query, name, kind="split", rows="9")
    change(query, name, kind="edit", row=1, record={"output": "x"})
    by_state = {
        state: numbers(query("rows", name=name, state=state)) for state in ("excluded", "flagged", "held_out", "edited")
    }
    assert by_state == {"excluded": [2, 3, 4], "flagged": [3], "held_out": [9], "edited": [1]}
    assert numbers(query("rows", name=name, state="kept")) == [1, 5, 6, 7, 8, 9, 10]
    change(query, name, kind="flag", rows="3")
    change(query, name, kind="undo", id=1)
    assert numbers(query("rows", name=name, state="flagged")) == []
    assert numbers(query("rows", name=name, state="excluded")) == []
    assert [step["is_undone"] for step in query("log", name=name)["steps"]] == [False] * 5 + [True, False]
    assert [step["id"] for step in query("log", name=name, first=4)["steps"]] == [2, 1, 0]


def test_an_edit_and_its_undo_change_the_text(query, name):
    query("rows", name=name)
    change(query, name, kind="edit", row=2, record={"instruction": "Changed", "output": ""})
    assert numbers(query("rows", name=name, text="changed")) == [2]
    change(query, name, kind="undo", id=1)
    assert numbers(query("rows", name=name, text="changed")) == []


def test_a_replacement_is_counted_before_it_is_made(query, name):
    operation = {"kind": "replace", "pattern": r"Question (\d)", "is_regex": True, "replacement": r"\1 asked"}
    answer = query("hits", name=name, operations=[operation])
    assert answer["count"] == 9
    assert answer["hits"][0] == {"row": 1, "column": "instruction", "before": "Question 1?", "after": "1 asked?"}
    plain = {"kind": "replace", "pattern": "Question 5", "replacement": "Q", "columns": ["instruction"]}
    assert query("hits", name=name, operations=[plain])["count"] == 1
    change(query, name, **operation)
    assert numbers(query("rows", name=name, text="5 asked?")) == [5]


def test_versions_are_compared_and_shown(query, name):
    before = query("log", name=name)["version"]
    change(query, name, kind="exclude", rows="4")
    answer = {"instruction": "Question 3?", "output": ["Ännswer 3", {"more": 1.5}]}
    between = query("log", name=name)["version"]
    for operation in (
        {"kind": "include", "rows": "4"},
        {"kind": "exclude", "rows": "5"},
        {"kind": "edit", "row": 3, "record": answer},
        {"kind": "edit", "row": 6, "record": {"instruction": "Question 6!", "output": "x"}},
        {"kind": "split", "rows": "7"},
    ):
        change(query, name, **operation)
    answer = query("changes", name=name, version=between)
    assert (answer["count"], answer["kinds"]) == (5, {"changed": 3, "added": 1, "gone": 1})
    rows = {row["row"]: row for row in answer["hits"]}
    assert (rows[4]["kind"], rows[4]["before"], rows[4]["after"][:16]) == ("added", "", '{"instruction": ')
    assert (rows[5]["kind"], rows[5]["after"]) == ("gone", "")
    assert (rows[6]["column"], rows[6]["before"], rows[6]["after"]) == ("instruction", "Question 6?", "Question 6!")
    assert (rows[7]["column"], rows[7]["before"], rows[7]["after"]) == ("(held out)", "false", "true")
    assert rows[3]["after"] == '["Ännswer 3", {"more": 1.5}]'
    assert [row["row"] for row in query("changes", name=name, version=between, first=3, count=1)["hits"]] == [6]
    assert query("changes", name=name, version=before, other=before)["count"] == 0

    assert numbers(query("rows", name=name, version=between, state="excluded")) == [4]
    assert query("row", name=name, version=before, row=6)["record"]["instruction"] == "Question 6?"
    assert query("row", name=name, row=6)["record"]["instruction"] == "Question 6!"
    with pytest.raises(DatasetError, match="has no version x"):
        query("changes", name=name, version="x")


def test_a_set_is_renamed_and_its_checks_stay(query, name, tmp_path):
    assert query("check", name=name)["rows"] == 10
    assert query("rename", name=name, other="rows") == {}
    assert query("found", name=name)["rows"] == 10
    assert [entry["name"] for entry in query("list")["sets"]] == ["rows"]
    source = tmp_path / "My rows (1).jsonl"
    assert query("make", dataset=DatasetConfig(source=str(source)))["name"] == f"{name}-2"


def test_a_conflict_and_a_wrong_operation_change_nothing(query, name, home):
    change(query, name, kind="exclude", rows="2")
    with pytest.raises(DatasetError, match="came in between"):
        query("apply", name=name, operations=[{"kind": "edit", "row": 2, "record": {"a": "b"}}], since=0)
    with pytest.raises(DatasetError, match="not an operation"):
        change(query, name, kind="replace", pattern="(", is_regex=True, replacement="")
    assert len(find_set(home, name).entries) == 1


def test_a_download_is_what_an_export_writes(query, name, home, tmp_path):
    change(query, name, kind="exclude", rows="2-4")
    export_version(SetRows(find_version(home, name), SourceOptions(home=home)), tmp_path / "out.jsonl", home)
    assert query("lines", name=name) == {"text": (tmp_path / "out.jsonl").read_text(), "next": None}


def test_a_damaged_set_is_listed_with_its_reason(query, name, home):
    (home.datasets / name / "log.jsonl").write_text("x\n")
    (entry,) = query("list")["sets"]
    assert entry["name"] == name
    assert "log" in entry["problem"]


def test_names_are_looked_up_and_questions_checked(query, name):
    with pytest.raises(DatasetError, match="does not exist"):
        query("rows", name="../other")
    with pytest.raises(ValidationError):
        SetQuestion(do="rows", name=name, first=-1)

"""`loratory data`: sets, as a person and as a script see them."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import DatasetError, RunError
from loratory.engine.paths import local_owner
from loratory.engine.runs.store import RunStore

DOCUMENTED = Path(__file__).parents[2] / "docs" / "sets.md"


@pytest.fixture
def run(home):
    app = build_app(("loratory.engine.commands.data", "loratory.engine.commands.data_sets"))

    def invoke(*arguments):
        result = CliRunner().invoke(app, ["data", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


@pytest.fixture
def query(run):
    return lambda *arguments: json.loads(run(*arguments, "--json"))


@pytest.fixture
def faq(run):
    run("add", "sample:loratory-faq", "--name", "faq")


def versions(query, name="faq"):
    """Return what the history shows of each version."""
    return [step for step in query("show", name)["history"] if step["version"]]


def write(path, *operations):
    path.write_text("".join(json.dumps(operation) + "\n" for operation in operations))
    return path


def test_the_documented_operations_can_be_applied_listed_and_undone(run, query, faq, tmp_path):
    block = re.search(r"```jsonl\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "OPERATIONS.jsonl"
    file.write_text(block[1], encoding="utf-8")

    answer = query("edit", "faq", "--apply", file)

    kinds = {entry["operation"]["kind"] for entry in answer["operations"]}
    assert kinds == {"edit", "exclude", "include", "flag", "note", "replace", "drop", "split", "undo"}
    assert answer["version"] == query("show", "faq")["version"]
    assert answer["version"] in run("show", "faq")
    assert [step["id"] for step in query("show", "faq")["history"] if step["is_undone"]] == [5]
    undone = query("edit", "faq", "--apply", write(tmp_path / "undo.jsonl", {"kind": "undo", "id": 1}))
    assert undone["version"] != answer["version"]


def test_sets_are_listed_with_rows_size_versions_and_their_last_run(run, query, faq, home, tmp_path):
    run("edit", "faq", "--apply", write(tmp_path / "o.jsonl", {"kind": "exclude", "rows": "1-3"}))
    version = versions(query)[1]["version"]
    store = RunStore(home, local_owner())
    config = {"model": {"id": "org/model"}, "dataset": {"source": "sample:x", "mix": {f"set:faq@{version}": 1.0}}}
    used = store.create(config_from_mapping(config)).id

    (row,) = query("list")
    assert (row["source"], row["rows"], row["operations"], row["runs"]) == ("set:faq", 354, 1, [used])
    assert row["bytes"] > 10_000
    assert used in run("list")
    assert [step["runs"] for step in versions(query)] == [[], [used]]
    assert used in run("show", "faq")
    assert query("show", f"faq@{versions(query)[0]['version']}")["history"] == versions(query)[:1]


def test_a_damaged_set_is_listed_with_what_is_wrong_and_the_others_as_ever(run, query, faq, home):
    run("add", "sample:lab-chats", "--name", "chats")
    (home.datasets / "chats" / "log.jsonl").write_text("{}\n")

    damaged, whole = query("list")

    assert damaged["name"] == "chats"
    assert "Line 1 of the log of the set chats" in damaged["problem"]
    assert whole["rows"] == 354
    assert query("delete", "chats", "--yes")["name"] == "chats"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Line 2 of o.jsonl is not an operation"),
        ('{"kind": "exclude", "rows": "x"}', "Line 2 of o.jsonl is not an operation: rows: rows are written as"),
        ('{"kind": "exclude", "rows": "999"}', "row 999 does not exist; the set has 354"),
    ],
)
def test_operations_are_all_checked_before_one_is_added(run, query, faq, tmp_path, line, why):
    file = write(tmp_path / "o.jsonl", {"kind": "exclude", "rows": "1"})
    file.write_text(file.read_text() + line + "\n")

    with pytest.raises(DatasetError) as error:
        run("edit", "faq", "--apply", file)

    assert why in str(error.value)
    assert len(query("show", "faq")["history"]) == 1


def test_what_came_in_between_is_named_where_it_touches_the_same_rows(run, query, faq, tmp_path):
    file = write(tmp_path / "o.jsonl", {"kind": "exclude", "rows": "1"})
    last = query("show", "faq")["last_operation"]
    run("edit", "faq", "--apply", file)

    with pytest.raises(DatasetError, match=r"operation 1 .* came in between"):
        run("edit", "faq", "--apply", file, "--since", last)


def test_a_difference_is_printed_row_by_row(run, query, faq, tmp_path):
    run("edit", "faq", "--apply", write(
        tmp_path / "o.jsonl", {"kind": "exclude", "rows": "1"}, {"kind": "edit", "row": 2, "record": {"instruction": "Q"}}
    ))  # fmt: skip
    names = [step["version"] for step in versions(query)]

    changes = [json.loads(line) for line in run("diff", "faq", names[0], names[-1], "--json").splitlines()]

    assert [change["row"] for change in changes] == [1, 2]
    assert changes[0]["after"] is None
    assert changes[1]["after"] == {"instruction": "Q"}
    assert "instruction: Q" in run("diff", "faq", names[0], names[-1])
    assert run("diff", "faq", names[0], names[0]) == ""


def test_a_version_is_exported_and_a_set_deleted_after_its_runs_are_named(run, query, faq, home, tmp_path, capsys):
    version = versions(query)[0]["version"]
    config = {"model": {"id": "org/model"}, "dataset": {"source": f"set:faq@{version}"}}
    used = RunStore(home, local_owner()).create(config_from_mapping(config)).id

    assert query("export", f"faq@{version}", "--to", tmp_path / "out.jsonl")["file"].endswith("out.jsonl")
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 354
    with pytest.raises(RunError, match="confirmation"):
        run("delete", "faq")
    assert query("rename", "faq", "help") == {"train_on": "set:help"}
    assert query("list")[0]["runs"] == [used]
    assert query("show", "faq")["history"][0]["runs"] == [used]
    assert query("delete", "faq", "--yes") == {"name": "help", "runs": [used]}
    assert query("list") == []
    with pytest.raises(DatasetError, match="The set 'faq' does not exist"):
        run("show", "faq")

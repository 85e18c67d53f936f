"""`loratory data check`, as a person and as a script see it."""

import json

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.errors import ConfigError


@pytest.fixture
def run(home):
    app = build_app(("loratory.engine.commands.data", "loratory.engine.commands.data_checks"))
    return lambda *arguments: CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"q": "Who?", "a": "bob@gmail.com | `x`"}, {"q": "who", "a": "Bob@gmail.com | `x`"}, {"q": "x", "a": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MAP = ("--map", "instruction=q", "--map", "output=a")


def test_the_text_has_a_table_and_details(run, file):
    result = run(file, *MAP)

    assert result.exit_code == 0
    assert any(line.split()[:4] == ["duplicates", "1", "exact", "1"] for line in result.stdout.splitlines())
    assert "row 2: Equals row 1; 2 rows are equal." in result.stdout
    assert "## personal_data" in result.stdout


def test_json_is_one_object_with_the_checks_that_were_named(run, file):
    report = json.loads(run(file, *MAP, "--only", "duplicates,personal_data", "--over", "prompts", "--json").stdout)

    assert [check["name"] for check in report["checks"]] == ["duplicates", "personal_data"]
    assert report["checks"][0]["findings"][0].items() >= {"row": 1, "kind": "exact", "partners": [0]}.items()
    assert report["checks"][1]["kinds"] == {"mail": 2}


def test_the_report_is_markdown_that_quotes_rows_as_code(run, file, tmp_path):
    assert run(file, *MAP, "--report", tmp_path / "report.md").exit_code == 0
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()

    assert lines[0] == "# Row checks"
    assert all(line.startswith("    ") for line in lines if "gmail" in line)


def test_an_unknown_check_and_a_threshold_out_of_bounds_are_refused(run, file):
    assert isinstance(run(file, *MAP, "--only", "spelling").exception, ConfigError)
    assert isinstance(run(file, *MAP, "--similarity", "0.1").exception, ConfigError)

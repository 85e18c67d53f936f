"""`loratory data check`, as a person and as a script see it."""

import json

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.errors import ConfigError


@pytest.fixture
def run(home):
    app = build_app(("loratory.engine.commands.data",))
    return lambda *arguments: CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"q": "Who?", "a": "bob@gmail.com | `x`"}, {"q": "who", "a": "Bob@gmail.com | `x`"}, {"q": "x", "a": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MAP = ("--map", "instruction=q", "--map", "output=a", "--map-role", "customer=user")


def test_the_text_has_each_check_with_its_findings(run, file):
    result = run(file, *MAP)

    assert result.exit_code == 0
    assert "## duplicates: 1 exact" in result.stdout
    assert "## refusals: nothing found" in result.stdout
    assert "row 2: Equals row 1; 2 rows are equal." in result.stdout
    assert "## personal_data" in result.stdout


def test_json_is_one_object_with_the_checks_that_were_named(run, file):
    report = json.loads(run(file, *MAP, "--only", "duplicates,personal_data", "--over", "prompts", "--json").stdout)

    assert [check["name"] for check in report["checks"]] == ["duplicates", "personal_data"]
    assert report["checks"][0]["findings"][0].items() >= {"row": 1, "kind": "exact", "partners": [0]}.items()
    assert report["checks"][1]["kinds"] == {"mail": 2}


def test_the_text_is_markdown_that_quotes_rows_as_code_as_many_as_are_wanted(run, file):
    lines = run(file, *MAP, "--only", "personal_data", "--most", 1).stdout.splitlines()

    assert lines[0] == "# Row checks"
    assert all(line.startswith("    ") for line in lines if "gmail" in line)
    assert lines[-1] == "    … and 1 more"


def test_an_unknown_check_and_a_threshold_out_of_bounds_are_refused(run, file):
    assert isinstance(run(file, *MAP, "--only", "spelling").exception, ConfigError)
    assert isinstance(run(file, *MAP, "--similarity", "0.1").exception, ConfigError)


def test_scorers_rate_the_answers(run, file):
    report = json.loads(
        run(file, *MAP, "--only", "quality", "--scorer", "{scorer: contains, column: q}", "--scorer", "length",
            "--score-below", "0.9", "--json").stdout
    )  # fmt: skip

    assert [scorer["scorer"] for scorer in report["scorers"]] == ["contains", "length"]
    (check,) = report["checks"]
    assert check["rows"] == len(check["scores"]) == 2
    assert isinstance(run(file, *MAP, "--scorer", "charm").exception, ConfigError)

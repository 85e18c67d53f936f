"""`loratory data generate` and `review`: from documents to a set that can be trained on."""

import json

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.errors import DatasetError, ModelError, RunError
from tests.data.workshop.made_sets import read
from tests.local_endpoint import GOOD, completion, serving

MODULES = tuple(f"loratory.engine.commands.{name}" for name in ("data", "data_sets"))


@pytest.fixture
def run(home):
    def invoke(*arguments):
        result = CliRunner().invoke(build_app(MODULES), ["data", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return invoke


@pytest.fixture
def manual(tmp_path):
    file = tmp_path / "manual.md"
    file.write_text("".join(f"# Part {n}\n\n{'It has screws. ' * 15}\n\n" for n in range(1, 5)))
    return file


def test_documents_become_a_set_in_three_commands(run, home, manual, tmp_path):
    verdicts = tmp_path / "verdicts.jsonl"
    with serving() as server:
        command = ("generate", manual, "--endpoint", server.url, "--model", "m", "--chunk", 250)
        estimate = json.loads(run(*command, "--prices", 1, 2, "--dry-run", "--json").stdout)
        assert server.requests == []
        assert not home.datasets.exists()
        most = estimate["at_most"]
        assert most["answer_tokens"] == 1024 * estimate["passages"]
        assert most["cost"] == round((most["prompt_tokens"] + 2 * most["answer_tokens"]) / 1e6, 4)
        assert estimate["candidates"] == 0

        result = run(*command)
        job = estimate["job"]
        assert f"Job {job}: {estimate['passages']} passages, at most " in result.output
        assert f"next: loratory data review {job} --export FILE" in result.output
        assert len(server.requests) == estimate["passages"]
        run("generate", "--resume", job)
        assert len(server.requests) == estimate["passages"]

    result = run("review", job, "--export", verdicts)
    assert f"then: loratory data review {job} --import {verdicts}" in result.output
    lines = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert len(lines) == estimate["passages"]
    assert lines[0]["unsupported"] == ["7"]
    assert lines[0]["place"].startswith("manual.md, Part 1, characters 1 to ")
    assert lines[0]["text"].startswith("# Part 1")
    lines[0]["verdict"] = "accept"
    lines[1]["row"]["messages"][1]["content"] = "It has many."
    lines[1]["verdict"] = "edit"
    lines[2]["verdict"] = "reject"
    verdicts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    counts = json.loads(run("review", job, "--import", verdicts, "--reviewer", "ann", "--json").stdout)
    assert (counts["accepted"], counts["not_judged"]) == (2, len(lines) - 3)
    counts = json.loads(run("review", job, "--accept-all", "--reviewer", "bob", "--set", "manual", "--json").stdout)
    assert counts["accepted"] == len(lines) - 1
    assert counts["next"] == "loratory train CONFIG --set dataset.source=set:manual"
    assert counts["agreements"][0]["rows"] == 3
    rows = list(read(home, "set:manual").values())
    assert [row["messages"][1]["content"] for row in rows] == [
        GOOD["answer"],
        "It has many.",
        *[GOOD["answer"]] * (len(lines) - 3),
    ]
    assert counts["agreements"][0]["differ"] == [3]
    assert f"manual.md, Part 1, characters 1 to {len(lines[0]['text'])}; {job} by m" in run("show", "manual").output
    with pytest.raises(RunError, match="needs a confirmation"):
        run("review", job, "--delete")
    assert json.loads(run("review", job, "--delete", "--yes", "--json").stdout)["next"] == "loratory data list"
    with pytest.raises(DatasetError, match="does not exist"):
        run("review", job)
    assert len(read(home, "set:manual")) == len(lines) - 1


def test_another_question_is_another_job(run, manual):
    with serving((200, completion({"summary": "S."}))) as server:
        command = ("generate", manual, "--endpoint", server.url, "--model", "m", "--recipe", "summary", "--json")
        first = json.loads(run(*command).stdout)["job"]
        assert json.loads(run(*command, "--limit-tokens", 100_000, "--timeout", 9).stdout)["job"] == first
        assert json.loads(run(*command, "--detail", "One word.").stdout)["job"] != first
        manual.write_text("New.")
        assert json.loads(run(*command).stdout)["job"] != first


def test_what_is_missing_is_said(run, manual, tmp_path):
    with pytest.raises(ModelError, match="Give the model, and the endpoint"):
        run("generate", manual)
    with pytest.raises(DatasetError, match="The job x does not exist"):
        run("review", "x")
    with pytest.raises(DatasetError, match="does not exist"):
        run("generate", "--resume", "../../x")
    with pytest.raises(DatasetError, match="was not found"):
        run("generate", tmp_path / "missing.pdf")
    with pytest.raises(DatasetError, match="No document is named"):
        run("generate", "--model", "m")

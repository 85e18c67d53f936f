"""`loratory push`, with a job that sends nothing."""

import json

import pytest

from loratory.engine.cli import run_command
from loratory.engine.export.contract import ExportedFile, PushResult
from tests.commands.conftest import FakeJob

MODULES = ("loratory.engine.commands.export", "loratory.engine.commands.configs")


def result_of(request) -> PushResult:
    return PushResult(
        url="https://hub.example/ada/x",
        commit="c" * 40,
        repository="ada/x",
        private=request.settings.private,
        files=(ExportedFile(name="adapter_model.safetensors", size_bytes=2048),),
        verified=None,
        notes=("Be careful.",),
    )


@pytest.fixture(autouse=True)
def job(monkeypatch, home):
    job = FakeJob(result_of)
    monkeypatch.setattr("loratory.engine.commands.export.PushJob", job)
    return job


def test_a_push_is_private_and_of_the_adapter_unless_said_otherwise(job, run_id, capsys):
    assert run_command(["push", run_id, "ada/x", "--json"], MODULES) == 0

    answer = json.loads(capsys.readouterr().out)
    assert (answer["url"], answer["commit"]) == ("https://hub.example/ada/x", "c" * 40)
    (request,) = job.requests
    assert (request.repository, request.settings.kind, request.settings.private) == ("ada/x", "adapter", True)


def test_options_arrive_in_the_request(job, run_id):
    options = ["--public", "--merged", "--checkpoint", "step-4", "--revision", "v2", "-m", "Second try"]

    assert run_command(["push", run_id, "ada/x", *options, "--dtype", "float16", "--no-verify"], MODULES) == 0

    (request,) = job.requests
    settings = request.settings
    assert (settings.private, settings.kind, settings.revision, settings.dtype) == (False, "merged", "v2", "float16")
    assert (settings.commit_message, settings.verify) == ("Second try", False)
    assert request.target.tuned.checkpoint == "step-4"


def test_people_read_files_notes_and_where_it_is(run_id, capsys):
    assert run_command(["push", run_id, "ada/x"], MODULES) == 0

    output = capsys.readouterr().out
    assert "2.0 kB  adapter_model.safetensors" in output
    assert "Be careful." in output
    assert "https://hub.example/ada/x (private), commit cccccccccccc" in output


def test_there_is_no_option_for_a_token(run_id):
    assert run_command(["push", run_id, "ada/x", "--token", "hf_x"], MODULES) == 2

"""`loratory push`, with a job that sends nothing."""

import json
from typing import ClassVar

import pytest

from engine.chat.contract import JobProgress
from engine.cli import run_command
from engine.config.load import config_from_mapping
from engine.errors import PushError
from engine.export.contract import ExportedFile, PushResult
from engine.paths import local_owner
from engine.runs.store import RunStore

MODULES = ("engine.commands.export", "engine.commands.configs")


class FakeJob:
    """Remembers what it was asked for."""

    requests: ClassVar[list] = []
    error = None

    def __init__(self, home, request) -> None:
        FakeJob.requests.append(request)
        self._request = request

    def run(self, on_progress):
        on_progress(JobProgress(phase="uploading", message="Uploading.", fraction=0.5))
        if FakeJob.error is not None:
            raise FakeJob.error
        return PushResult(
            url="https://hub.example/ada/x",
            commit="c" * 40,
            repository="ada/x",
            private=self._request.settings.private,
            files=(ExportedFile(name="adapter_model.safetensors", size_bytes=2048),),
            verified=None,
            notes=("Be careful.",),
        )


@pytest.fixture(autouse=True)
def job(monkeypatch, home):
    monkeypatch.setattr(FakeJob, "requests", [])
    monkeypatch.setattr(FakeJob, "error", None)
    monkeypatch.setattr("engine.commands.export.PushJob", FakeJob)
    return FakeJob


@pytest.fixture
def run_id(home) -> str:
    config = config_from_mapping({"model": {"id": "org/model"}, "dataset": {"source": "sample:x"}})
    return RunStore(home, local_owner()).create(config).id


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


def test_what_goes_wrong_is_reported_in_two_sentences(job, run_id, capsys):
    job.error = PushError("Pushing needs a Hugging Face token, and there is none.", "Make one.")

    assert run_command(["push", run_id, "ada/x"], MODULES) == 1
    assert capsys.readouterr().err.strip().endswith("token, and there is none. Make one.")


def test_there_is_no_option_for_a_token(run_id):
    assert run_command(["push", run_id, "ada/x", "--token", "hf_x"], MODULES) == 2

"""A push from end to end: exported, verified, sent by a process of its own, and nothing of it where it does not belong."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.results import PushConfig
from loratory.engine.errors import HubUnreachableError, ModelError, PushError, RunError
from loratory.engine.export.contract import PushRequest
from loratory.engine.export.push import PushJob
from loratory.engine.processes.messages import CancelledRequestError
from tests.chat.tiny_adapters import lora, write_trained_run
from tests.export.push_folders import ADAPTER_FILES
from tests.export.quick_export import QuickExport
from tests.hub.repositories import OwnHub
from tests.hub.server import TOKEN, Fault

NAME = "ada/my-adapter"


@pytest.fixture
def hub(monkeypatch):
    with OwnHub() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield stand_in


@pytest.fixture(scope="module")
def run(tiny_model_folder, tmp_path_factory) -> Path:
    return write_trained_run(tmp_path_factory.mktemp("runs") / "run", tiny_model_folder, lora())


def job(home, run: Path, export=None, repository: str = NAME, **settings) -> PushJob:
    request = PushRequest(target=ChatTarget.of_run(run), repository=repository, settings=PushConfig(**settings))
    return PushJob(home, request) if export is None else PushJob(home, request, export)


def push_processes() -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["ppid", "cmdline"])  # one that ends meanwhile is left out
        if process.info["ppid"] == os.getpid()
        and "loratory.engine.export.push" in " ".join(process.info["cmdline"] or ())
    ]


@pytest.mark.e2e
def test_an_adapter_is_pushed_and_loads_from_what_arrived(hub, home, run, tiny_model_folder, tmp_path):
    messages: list[Any] = []

    result = job(home, run).run(messages.append)

    assert {file.name for file in result.files} == ADAPTER_FILES
    files = hub.repositories[NAME].files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), tmp_path)
    assert result.verified.passed
    assert result.private
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == tiny_model_folder.name
    card = files["README.md"].decode()
    assert f'from_pretrained("{NAME}")' in card
    assert "rows.jsonl" in card
    phases = list(dict.fromkeys(progress.phase for progress in messages))
    assert phases == ["checking", "preparing", "uploading", "committing", "ready"]
    assert list((home.cache / "pushes").glob("*/*")) == []


def test_nothing_that_arrives_tells_of_this_machine(hub, home, run, tmp_path):
    job(home, run, QuickExport()).run()

    for content in hub.repositories[NAME].files().values():
        for secret in ("secret-data", "/home/somebody", TOKEN, str(tmp_path)):
            assert secret.encode() not in content


def test_a_name_that_cannot_be_is_refused_before_anything_is_done(hub, home, run):
    export = QuickExport()

    for name in ("../etc", "a/b/c", "ada/", "ada/näme", "ada/x.git", "ada/x--y", "-ada/x", "ada/x.", "", "a" * 97):
        with pytest.raises(PushError, match="cannot be a repository"):
            job(home, run, export, repository=name).run()
    with pytest.raises(PushError, match="cannot be a branch"):
        job(home, run, export, revision="../main").run()
    assert export.runs == 0
    assert not hub.requests
    assert not home.cache.exists()


def test_a_name_alone_belongs_to_the_account(hub, home, run):
    assert job(home, run, QuickExport(), repository="mine").run().repository == "ada/mine"


def test_an_owner_who_is_another_person_is_refused_before_anything_is_prepared(hub, home, run):
    export = QuickExport()

    with pytest.raises(PushError, match="not visible to ada, who may not create it for someone") as error_info:
        job(home, run, export, repository="someone/else").run()

    assert "ada, lab" in error_info.value.fix
    assert export.runs == 0
    assert job(home, run, export, repository="Lab/ours").run().repository == "Lab/ours"


def test_without_a_token_nothing_is_prepared(hub, home, run, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    export = QuickExport()

    with pytest.raises(PushError, match="needs a Hugging Face token, and there is none") as error_info:
        job(home, run, export).run()
    assert "hf auth login" in error_info.value.fix
    assert export.runs == 0
    assert not hub.requests


def test_a_model_without_an_adapter_is_not_pushed(hub, home, tiny_model_folder):
    from loratory.engine.config.run import ModelConfig

    request = PushRequest(target=ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder))), repository=NAME)
    with pytest.raises(ModelError, match="Nothing to export: this model has no adapter"):
        PushJob(home, request).run()


def test_what_differs_from_its_run_is_not_sent(hub, home, run):
    with pytest.raises(RunError, match=r"differs from the run by 0\.5 in a logit"):
        job(home, run, QuickExport(passed=False)).run()
    assert hub.repositories == {}
    assert list((home.cache / "pushes").glob("*/*")) == []


@pytest.mark.parametrize("extra", [f"{{# {TOKEN} #}}", "{# see /home/somebody/notes #}"])
def test_a_file_that_says_too_much_is_not_sent(hub, home, run, extra):
    with pytest.raises(PushError, match=r"chat_template\.jinja contains (an access token|a path)") as error_info:
        job(home, run, QuickExport(extra=extra)).run()
    assert TOKEN not in str(error_info.value)
    assert hub.repositories == {}


@pytest.mark.e2e
def test_after_an_interruption_nothing_is_prepared_or_sent_twice(hub, home, run):
    export = QuickExport()
    hub.faults = [Fault("commit", 403)]
    with pytest.raises(PushError):
        job(home, run, export).run()
    sent_before = list(hub.put)

    job(home, run, export).run()

    assert export.runs == 1
    assert hub.put == sent_before
    assert set(hub.repositories[NAME].files()) == ADAPTER_FILES
    assert list((home.cache / "pushes").glob("*/*")) == []


@pytest.mark.e2e
def test_a_push_is_stopped_in_the_midst_of_a_file(hub, home, run):
    reached, release = threading.Event(), threading.Event()

    def hangs(_):
        reached.set()
        release.wait(300)
        return 200, {}

    hub._put = hangs
    push = job(home, run, QuickExport())
    results = []

    def run_it() -> None:
        with pytest.raises(CancelledRequestError):
            push.run()
        results.append("stopped")

    thread = threading.Thread(target=run_it)
    thread.start()
    assert reached.wait(300)
    assert len(push_processes()) == 1

    push.stop()
    thread.join(300)

    assert results == ["stopped"]
    assert hub.repositories[NAME].files() == {}
    release.set()
    assert push_processes() == []


@pytest.mark.e2e
@pytest.mark.parametrize(
    "faults",
    [
        [Fault("commit", 500), Fault("commit", "reset")],
        [Fault("preupload", 403, times=99)],
    ],
    ids=["interrupted", "refused"],
)
def test_the_token_is_seen_nowhere(hub, home, run, tmp_path, faults):
    """Whatever the Hub answers, and although the stand-in quotes the token in its refusals."""
    hub.faults = faults
    is_refused = faults[0].what == 403
    elsewhere = tmp_path / "hf"
    command = [sys.executable, "-m", "loratory.engine.cli", "push", str(run), NAME, "--no-verify", "--json"]
    environment = {**os.environ, "LORATORY_HOME": str(home.root), "HF_HOME": str(elsewhere), "LORATORY_DEBUG": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    seen_in_arguments = []
    while process.poll() is None:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = file.read_bytes()
            except OSError:
                continue
            if TOKEN.encode() in arguments:
                seen_in_arguments.append(arguments)
        time.sleep(0.05)
    out, err = process.communicate()

    assert process.returncode == int(is_refused), err
    assert seen_in_arguments == []
    assert TOKEN not in out + err
    for folder in (home.root, run, elsewhere, tmp_path):
        for path in folder.rglob("*"):
            if path.is_file():
                assert TOKEN.encode() not in path.read_bytes(), path
    if not is_refused:
        assert json.loads(out)["commit"] == hub.repositories[NAME].branches["main"]


def test_where_the_hub_may_not_be_asked_that_is_reported(hub, home, run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        job(home, run, QuickExport()).run()

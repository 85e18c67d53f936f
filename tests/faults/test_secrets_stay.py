"""Secrets of the server's environment reach no worker but those that log in with them: each kind is started for a look."""

import contextlib
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.data.hub import hub_access
from loratory.engine.errors import EngineError
from loratory.engine.export.gguf.llama_cpp import Converter, convert
from loratory.engine.export.push import WORKER_MODULE as PUSH_WORKER
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.inspector.session import Inspector
from loratory.engine.models.prepared import _download_wheel, convert_gguf, ignore_progress
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.spawn import Access
from loratory.engine.runs.job import JobSpec, start_worker, worker_command
from loratory.engine.runs.run import Run, RunFolder
from tests.supervision.fake_runs import config_for, cpu

SECRETS = {
    "HF_TOKEN": "hf_secret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret",
    "WANDB_API_KEY": "wandb_secret",
    "AWS_SECRET_ACCESS_KEY": "aws_secret",
    "PIP_EXTRA_INDEX_URL": "pip_secret",
}
CPU = cpu()


class Shown:
    """Environments of the workers that were started, by a Python that only shows its own."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "python"
        self._folder = folder / "shown"
        self._folder.mkdir()
        self.python.write_text(
            f'#!/bin/sh\nenv > "{self._folder}/$$.part"\nmv "{self._folder}/$$.part" "{self._folder}/$$.env"\nexit 1\n'
        )
        self.python.chmod(0o700)

    def secrets_after(self, start: Callable[[], object]) -> set[str]:
        """Start something that starts a worker, and return the secrets that the worker got."""
        with contextlib.suppress(EngineError):
            start()
        texts = [path.read_text() for path in self._folder.glob("*.env")]
        assert texts, "no worker was started"
        return {secret for secret in SECRETS.values() for text in texts if secret in text}


@pytest.fixture
def page(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    environments = Shown(tmp_path)
    monkeypatch.setattr(sys, "executable", str(environments.python))
    return environments


def local_model(tmp_path: Path) -> ModelConfig:
    return ModelConfig(id=str(tmp_path))


def test_no_process_of_the_inspector_gets_any(page, home, tmp_path):
    inspector = Inspector(home)
    questions = (
        lambda: inspector.preview(DatasetConfig(source="sample:lab-chats"), local_model(tmp_path)),
        lambda: inspector.check(DatasetConfig(source="nobody/nothing")),
        lambda: inspector.module_inventory(ModelConfig(id="nobody/nothing")),
    )
    for ask in questions:
        assert page.secrets_after(ask) == set()
    inspector.close()


def test_the_chat_gets_none_for_a_model_that_is_here(page, home, tmp_path, tiny_model_folder):
    session = ChatSession(home, choose=lambda _: CPU)

    target = ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder)))
    assert page.secrets_after(lambda: session.load(target)) == set()


def test_the_chat_may_log_in_to_the_hub_for_a_model_there(page, home):
    session = ChatSession(home, choose=lambda _: CPU)

    target = ChatTarget.of_model(ModelConfig(id="nobody/nothing"))
    assert page.secrets_after(lambda: session.load(target)) == {"hf_secret"}


@pytest.mark.parametrize("purpose", ["evaluation", "export"])
def test_evaluation_and_export_get_none_for_a_model_that_is_here(page, home, tmp_path, purpose):
    job = DeviceJob(
        home=home, module=f"engine.{purpose}.worker", purpose=purpose, title="a run", device=CPU, holds_device=False,
        access=hub_access(local_model(tmp_path), DatasetConfig(source="sample:lab-chats")),
    )  # fmt: skip

    def run() -> object:
        return job.run("any", {}, threading.Event(), lambda _: None, lambda _: None)

    assert page.secrets_after(run) == set()


def test_a_push_gets_the_hubs_token_and_nothing_else(page, tmp_path):
    process = JsonLinesProcess(PUSH_WORKER, log_file=tmp_path / "log", access=(Access.HUB,))

    assert page.secrets_after(lambda: process.call("check", {})) == {"hf_secret"}


def test_the_conversions_of_gguf_files_get_none(page, home, tmp_path):
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert page.secrets_after(lambda: convert_gguf(gguf, tmp_path, home, ignore_progress)) == set()

    converter = Converter((sys.executable, "convert.py"), tmp_path)
    target = tmp_path / "made.gguf"
    assert page.secrets_after(lambda: convert(converter, tmp_path, target, "f16", lambda _: None)) == set()

    llama = JsonLinesProcess("loratory.engine.export.worker.llama", log_file=tmp_path / "log", restarts=False)
    assert page.secrets_after(lambda: llama.call("answer", {})) == set()


def test_pip_gets_what_its_index_needs(page, home, tmp_path):
    home.make_writable()
    assert page.secrets_after(lambda: _download_wheel(tmp_path, home, ignore_progress)) == {"pip_secret"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, set()),
        ({"training": {"report_to": ["tensorboard"]}}, set()),
        ({"training": {"report_to": ["wandb"]}}, {"wandb_secret"}),
        ({"model": {"id": "owner/gated"}}, {"hf_secret"}),
        ({"dataset": {"source": "owner/gated"}}, {"hf_secret"}),
    ],
)
def test_a_training_worker_gets_what_its_run_names(page, tmp_path, sections, expected):
    config = config_for(**({"model": {"id": str(tmp_path)}, "dataset": {"source": "sample:lab-chats"}} | sections))
    order = JobSpec(Run("run-1", "ann", RunFolder(tmp_path / "run")), config, (cpu(),), 1)

    assert page.secrets_after(lambda: start_worker(order, worker_command).wait()) == expected


def test_a_login_in_a_file_is_out_of_reach_as_well(page, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("hf_secret")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    process = JsonLinesProcess("loratory.engine.any", log_file=tmp_path / "log")
    with contextlib.suppress(EngineError):
        process.call("any", {})

    text = next((tmp_path / "shown").glob("*.env")).read_text()
    assert f"HF_TOKEN_PATH={os.devnull}" in text.splitlines()

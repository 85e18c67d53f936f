"""`loratory serve`, without a model: what it is asked to load, where it may listen, and what it says."""

import json
import socket

import pytest

from loratory.engine.cli import run_command
from loratory.engine.config.load import config_from_mapping
from loratory.engine.paths import local_owner
from loratory.engine.runs.store import RunStore
from tests.chat.tiny_adapters import lora, make_adapter

MODULES = ("loratory.engine.commands.chat", "loratory.engine.commands.configs")


@pytest.fixture
def calls_to_serve(monkeypatch):
    """Record what would have been served."""
    calls = []

    def note(model, host, port, on_listening, load):
        calls.append((model, host, port))
        on_listening(f"http://{host}:{port}/v1", (model.name, "base"))

    monkeypatch.setattr("loratory.engine.serve.endpoint.serve_model", note)
    return calls


@pytest.fixture
def run_id(home, tiny_model_folder) -> str:
    values = {
        "model": {"id": str(tiny_model_folder)},
        "dataset": {"source": "sample:x"},
        "run": {"name": "my run"},
    }
    run = RunStore(home, local_owner()).create(config_from_mapping(values))
    make_adapter(tiny_model_folder, run.folder.adapter, lora())
    return run.id


def test_a_run_is_served_under_its_id_and_reports_where(calls_to_serve, run_id, capsys):
    assert run_command(["serve", run_id, "--port", "8123", "--json"], MODULES) == 0

    ((model, host, port),) = calls_to_serve
    assert (model.name, tuple(model.aliases)) == (run_id, ("my run", "tuned"))
    assert model.target.tuned.folder.name == run_id
    assert (host, port) == ("127.0.0.1", 8123)
    assert json.loads(capsys.readouterr().out) == {"url": "http://127.0.0.1:8123/v1", "models": [run_id, "base"]}


def test_people_read_it_on_stderr(calls_to_serve, run_id, capsys):
    assert run_command(["serve", run_id], MODULES) == 0

    output = capsys.readouterr()
    assert output.out == ""
    assert f"http://127.0.0.1:8000/v1 answers as {run_id} and base." in output.err


def test_the_base_alone_is_served_without_the_adapter(calls_to_serve, run_id, tiny_model_folder):
    assert run_command(["serve", run_id, "--base"], MODULES) == 0

    ((model, _, _),) = calls_to_serve
    assert model.target.tuned is None
    assert model.name == tiny_model_folder.name


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org"])
def test_other_hosts_are_refused_as_by_the_page(run_id, host, capsys):
    for port in ("8000", "0"):
        assert run_command(["serve", run_id, "--host", host, "--port", port], MODULES) == 1
        assert f"does not listen on {host} without accounts" in capsys.readouterr().err


def test_a_port_in_use_is_reported_before_the_model_is_loaded(run_id, capsys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        assert run_command(["serve", run_id, "--port", str(port)], MODULES) == 1
    assert f"Port {port} is in use or not allowed" in capsys.readouterr().err

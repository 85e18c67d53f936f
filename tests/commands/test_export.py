"""`loratory export`, with a job that writes nothing."""

import json
from functools import partial

import pytest

from loratory.engine.cli import run_command
from loratory.engine.export.contract import ExportedFile, ExportResult, read_records
from tests.chat.tiny_adapters import lora, make_adapter
from tests.commands.conftest import FakeJob
from tests.export.quick_export import verification
from tests.tiny_model import make_tiny_model

MODULES = ("loratory.engine.commands.export", "loratory.engine.commands.configs")


def result_of(request, *, matches=True) -> ExportResult:
    files = (ExportedFile(name="model.safetensors", size_bytes=2048),)
    verified = verification(matches, 0.001, 0.01)
    return ExportResult(path=request.folder, files=files, verified=verified, notes=("Be careful.",))


@pytest.fixture(autouse=True)
def job(monkeypatch, home):
    job = FakeJob(result_of)
    monkeypatch.setattr("loratory.engine.commands.export.ExportJob", job)
    return job


def test_an_export_is_reported_as_one_json_object(job, run_id, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--checkpoint", "step-4", "--dtype", "float16", "--max-shard-gb", "2", "--model", "org/base"]

    code = run_command(["export", run_id, "--to", "merged", "--out", str(out), *options, "--json"], MODULES)

    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["path"] == str(out)
    assert answer["files"] == [{"name": "model.safetensors", "size_bytes": 2048}]
    assert answer["verified"]["passed"] is True
    (request,) = job.requests
    assert (request.settings.kind, request.settings.dtype, request.settings.max_shard_gb) == ("merged", "float16", 2.0)
    assert (request.target.tuned.checkpoint, request.target.model.id) == ("step-4", "org/base")
    (record,) = read_records(request.target.tuned.folder)  # which the page lists
    assert (record.kind, record.location, record.checkpoint) == ("merged", str(out), "step-4")


def test_people_read_sizes_notes_and_the_verdict(run_id, tmp_path, capsys):
    assert run_command(["export", run_id, "--to", "adapter", "--out", str(tmp_path / "out")], MODULES) == 0

    output = capsys.readouterr().out
    assert "2.0 kB  model.safetensors" in output
    assert "Be careful." in output
    assert "20 of 20 greedy answers are the same" in output


def test_an_export_that_differs_from_its_run_is_an_error(job, run_id, tmp_path, capsys):
    job.result = partial(result_of, matches=False)

    assert run_command(["export", run_id, "--to", "merged", "--out", str(tmp_path / "out")], MODULES) == 1
    assert "differs from the run by 0.001 in a logit; rounding explains 0.01. Do not use it" in capsys.readouterr().err


def test_sizes_are_printed_before_a_gguf_is_written(run_id, home, tmp_path, capsys):
    base = make_tiny_model(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", lora())

    assert run_command(["export", str(adapter), "--to", "gguf", "--out", str(tmp_path / "out")], MODULES) == 0

    output = capsys.readouterr().err
    assert output.index("Predicted sizes: q4_k_m ") < output.index("Writing.")


def test_gguf_takes_its_own_settings(job, run_id, tmp_path):
    options = ["--gguf-type", "q8_0", "--keep-merged", "--llama-cpp", str(tmp_path / "llama.cpp")]

    assert run_command(["export", run_id, "--to", "gguf", "--out", str(tmp_path / "out"), *options], MODULES) == 0

    (request,) = job.requests
    assert (request.settings.kind, request.settings.gguf_type, request.settings.keep_merged) == ("gguf", "q8_0", True)
    assert request.llama_cpp == tmp_path / "llama.cpp"

"""`loratory cluster` on a real Slurm."""

import json
import sys

import pytest
import yaml

from engine.cli import run_command
from engine.config.load import config_to_yaml
from engine.executors.slurm.discovery import write_place
from engine.executors.slurm.place import ClusterPlace
from engine.paths import local_owner
from engine.runs.store import RunStore
from tests.runs.supervision import REPOSITORY, config_for
from tests.slurm.conftest import record_of

pytestmark = pytest.mark.e2e


def test_a_cluster_is_described_checked_and_not_replaced_by_surprise(slurm, home, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    file = home.root / "cluster.yaml"

    assert run_command(["cluster", "discover", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["gpu_types"] == [{"name": "toy", "memory_gib": 8.0, "per_node": 2, "count": 4}]

    description = {**result, "python": sys.executable, "memory_gib": 2.0}
    file.write_text(yaml.safe_dump(description))
    assert run_command(["cluster", "discover"]) == 1
    assert "memory_gib: 2.0, found" in capsys.readouterr().err
    assert yaml.safe_load(file.read_text()) == description

    code = run_command(["cluster", "check", "--json"])
    report = json.loads(capsys.readouterr().out)
    has_problems = not report["gpus"]  # the devices of this cluster are not real GPUs, but the machine may have some
    assert code == int(has_problems)
    assert report["visible"].isdecimal()
    assert report["versions"]["torch"]
    assert any("no GPU" in problem for problem in report["problems"]) == has_problems

    file.write_text(yaml.safe_dump({**description, "python": "/nowhere/python"}))
    assert run_command(["cluster", "check"]) == 1
    assert "reported nothing" in capsys.readouterr().err


def test_a_real_run_is_trained_by_the_cluster_from_the_command_line(slurm, home, tmp_path, tiny_model_folder, capsys):
    data, place = tmp_path / "rows.jsonl", ClusterPlace(python=sys.executable, cpus=1, memory_gib=4, poll_seconds=0.5)
    data.write_text("\n".join(json.dumps({"instruction": f"row {n}", "output": f"number {n}"}) for n in range(40)))
    write_place(home, place)
    config = config_for(
        "On Slurm",
        model={"id": str(tiny_model_folder)},
        dataset={"source": str(data)},
        adapter={"r": 4, "lora_alpha": 8},
        training={"max_steps": 3, "max_length": 64},
        run={"where": "slurm", "devices": "cpu"},
    )
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(config))

    assert run_command(["train", str(file), "--json"]) == 0, capsys.readouterr().err

    result = json.loads(capsys.readouterr().out)
    run = RunStore(home, local_owner()).get(result["run_id"])
    record, worker = record_of(run), run.folder.read_worker()
    assert (result["status"], result["steps"]) == ("completed", 3)
    assert run.folder.adapter.is_dir()
    assert worker.job_id == record.job_id
    assert run.folder.read_state().device == f"slurm {record.job_id} · {record.nodes} · CPU"

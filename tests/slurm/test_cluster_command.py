"""`loratory cluster` on a real Slurm."""

import json
import sys

import pytest
import yaml

from loratory.engine.cli import run_command
from tests.supervision.fake_runs import REPOSITORY

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

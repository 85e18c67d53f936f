"""A CUDA device, or a skip that says why."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.models.demo import DEMO_MODEL_ID
from engine.runs.run import Run
from tests.training.worker_runs import WorkerRuns, write_questions

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER_SECONDS = 300


@pytest.fixture(autouse=True)
def cuda():
    """The first CUDA device; every test here needs one."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device on this machine")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.device("cuda", 0)


@pytest.fixture
def cuda_runs(home, demo_home, tmp_path) -> WorkerRuns:
    """Makes runs of the demo model on the GPU."""
    return WorkerRuns(home, demo_home.models / DEMO_MODEL_ID, write_questions(tmp_path / "questions.jsonl", 60))


@dataclass(frozen=True)
class CudaWorkers:
    """Starts real workers as the supervisor does; forked ones could not use CUDA."""

    log: Path

    def run(self, run: Run, fault: str = "") -> int:
        """Run one attempt to its end; returns the exit code."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
        if fault:
            environment["LORATORY_TEST_FAULT"] = fault
        with self.log.open("ab") as log:
            return subprocess.run(
                [sys.executable, "-P", "-m", "engine.training.worker", str(run.folder.path)],
                cwd=REPOSITORY,
                env=environment | {"PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=WORKER_SECONDS,
                check=False,
            ).returncode


@pytest.fixture
def cuda_workers(tmp_path) -> CudaWorkers:
    """Starts workers on the GPU."""
    return CudaWorkers(tmp_path / "workers.log")


@pytest.fixture
def show(capsys, request):
    """Prints figures past pytest's capture: who runs these tests wants to see them."""

    def print_figures(**figures: object) -> None:
        with capsys.disabled():
            print(f"\n  {request.node.name}: {json.dumps(figures, default=str)}", flush=True)

    return print_figures

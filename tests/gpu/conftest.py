"""A CUDA device, or a skip that reports why."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from loratory.engine.models.prepared import DEMO_MODEL_ID
from loratory.engine.runs.run import Run
from loratory.engine.training.worker import EXIT_FINISHED
from tests.gpu.cuda_training import SHAPES, save_in_shape, the_gpu
from tests.training.worker_runs import WorkerRuns, data_of_events, losses_of, newest_intact, write_questions

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER_SECONDS = 300
RESUME_TOLERANCE = 0.01  # of a loss in 16 bits

# What a shape needs: of the GPU, to make it in bfloat16 and to train it; and of the disk.
_GPU_GIB = {"0.5B": 6, "1.5B": 10, "8B": 24}
_DISK_GIB = {"0.5B": 2, "1.5B": 5, "8B": 24}


@pytest.fixture(autouse=True)
def cuda():
    """Return the first CUDA device; every test here needs one."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device on this machine")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.device("cuda", 0)


@pytest.fixture
def cuda_runs(home, demo_home, tmp_path) -> WorkerRuns:
    """Return a maker of runs of the demo model on the GPU."""
    return WorkerRuns(home, demo_home.models / DEMO_MODEL_ID, write_questions(tmp_path / "questions.jsonl", 60))


@pytest.fixture(scope="session")
def in_shape(tmp_path_factory) -> Callable[[str], Path]:
    """Make folders of models with random weights in real shapes, each once; skip what is too large for this machine."""
    cache: dict[str, Path] = {}

    def make(shape: str) -> Path:
        root = tmp_path_factory.getbasetemp()
        if the_gpu().total_bytes < _GPU_GIB[shape] * 2**30:
            pytest.skip(f"a model of {shape} needs a GPU with {_GPU_GIB[shape]} GiB")
        if shape not in cache and shutil.disk_usage(root).free < _DISK_GIB[shape] * 2**30:
            pytest.skip(f"a model of {shape} needs {_DISK_GIB[shape]} GiB of disk")
        if shape not in cache:
            cache[shape] = save_in_shape(root / f"shape-{list(SHAPES).index(shape)}", shape)
        return cache[shape]

    return make


@dataclass(frozen=True)
class CudaWorkers:
    """Starts real workers as the supervisor does; forked ones could not use CUDA."""

    log: Path

    def run(self, run: Run, fault: str = "", *, visible: str = "0") -> int:
        """Run one attempt to its end; returns the exit code.

        Args:
            run: The run.
            fault: Where it is to be killed.
            visible: CUDA_VISIBLE_DEVICES.
        """
        environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}
        if fault:
            environment["LORATORY_TEST_FAULT"] = fault
        with self.log.open("ab") as log:
            return subprocess.run(
                [sys.executable, "-P", "-m", "loratory.engine.training.worker", str(run.folder.path)],
                cwd=REPOSITORY,
                env=environment | {"PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=WORKER_SECONDS,
                check=False,
            ).returncode

    def end_of_log(self) -> str:
        """Return the end of the workers' output."""
        return self.log.read_text(errors="replace")[-3000:]


@pytest.fixture
def cuda_workers(tmp_path) -> CudaWorkers:
    """Return a starter of workers on the GPU."""
    return CudaWorkers(tmp_path / "workers.log")


@pytest.fixture
def resumed_run(cuda_runs, cuda_workers):
    """Trains a run to its end, and another with the same sections that is killed at step 7 and resumed; gives both.

    Kernels on CUDA add up in an order of their own (atomics in the backward pass of embeddings and of attention), so the
    second follows the first within rounding of 16 bits and not bit by bit.
    """

    def make(**sections) -> tuple[Run, Run, float]:
        whole, run = cuda_runs.create(**sections), cuda_runs.create(**sections)
        assert cuda_workers.run(whole) == EXIT_FINISHED, cuda_workers.end_of_log()
        assert cuda_workers.run(run, "training:step-7=kill") == -signal.SIGKILL
        assert newest_intact(run.folder.checkpoints).step == 5
        assert cuda_workers.run(run) == EXIT_FINISHED, cuda_workers.end_of_log()
        assert data_of_events(run, "resumed")[0].step == 5
        expected, got = dict(losses_of(whole)), dict(losses_of(run))
        assert got.keys() == expected.keys()
        worst = max(abs(got[step] - expected[step]) / expected[step] for step in got)
        assert worst < RESUME_TOLERANCE
        return whole, run, worst

    return make


@pytest.fixture
def show(capsys, request):
    """Print figures past pytest's capture."""

    def print_figures(**figures: object) -> None:
        with capsys.disabled():
            print(f"\n  {request.node.name}: {json.dumps(figures, default=str)}", flush=True)

    return print_figures

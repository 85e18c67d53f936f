"""What a real worker writes into its log, and what it reports where a library cannot be loaded."""

import os
import re
import subprocess
import sys

import pytest

from loratory.engine.runs.history.events import FailedData
from loratory.engine.runs.history.log import last_event
from loratory.engine.training.worker import EXIT_FAILED, EXIT_FINISHED
from tests.fork_server import REPOSITORY

pytestmark = pytest.mark.e2e

SHORT = {"max_steps": 2, "save_steps": 1, "eval_steps": 1}


def run_worker(run, **environment):
    """Run a worker in a process of its own, not forked; `stdout` has both outputs."""
    command = [sys.executable, "-P", "-m", "loratory.engine.training.worker", str(run.folder.path)]
    settings = {**os.environ, **environment}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings, cwd=REPOSITORY, check=False
    )


def warnings_in(log):
    return re.findall(r"^.*Warning\b.*$", log, re.MULTILINE)


@pytest.mark.parametrize(
    ("method", "quantization", "checkpointing"),
    [
        ("lora", "none", True),
        ("lora", "nf4", True),
        ("lora", "int8", False),
        ("ia3", "none", False),
        ("prefix_tuning", "none", False),
        ("none", "none", True),
    ],
)
def test_the_log_of_each_method_has_no_warning(method, quantization, checkpointing, workers, runs):
    run = runs.create(
        model={"id": str(runs.model), "quantization": quantization},
        adapter={"method": method},
        training={**SHORT, "gradient_checkpointing": checkpointing},
    )

    assert workers.run(run.folder.path) == EXIT_FINISHED

    log = run.folder.log.read_text()
    assert "trainable params:" in log
    assert warnings_in(log) == []


def test_the_log_of_a_process_of_its_own_has_no_warning(runs):
    run = runs.create(training=SHORT)

    process = run_worker(run, OMP_NUM_THREADS="1")

    assert process.returncode == EXIT_FINISHED
    assert "trainable params:" in process.stdout
    assert warnings_in(process.stdout) == []
    assert "leaked" not in process.stdout


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ('raise ImportError("libcudart.so.12: no such file")', "libcudart.so.12: no such file"),
        ('raise OSError("/home/ann/lib/libgomp.so: cannot map")', "libgomp.so: cannot map"),
        ("raise MemoryError", "MemoryError"),
    ],
    ids=["absent", "path", "memory"],
)
def test_a_library_that_cannot_be_loaded_is_the_reason_of_the_failure(runs, tmp_path, fault, reason):
    run = runs.create(training=SHORT)
    (tmp_path / "peft.py").write_text(fault)

    process = run_worker(run, PYTHONPATH=str(tmp_path))

    failed = last_event(run.folder.events).data
    assert process.returncode == EXIT_FAILED
    assert isinstance(failed, FailedData)
    assert failed.what == f"A library that training needs cannot be loaded ({reason})."
    assert "ulimit -v" in failed.fix

"""Real training workers in real processes, many of them; they are forked, see `tests.fork_server`."""

import subprocess
from pathlib import Path

from loratory.engine.processes.spawn import spawn, worker_argv
from loratory.engine.runs.job import WORKER_MODULE
from loratory.engine.training.faults import VARIABLE


class ForkingWorkers:
    """Starts training workers."""

    def __init__(self) -> None:
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, run: Path, fault: str = "") -> int:
        """Begin an attempt at a run; returns the process id."""
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if fault:
            environment[VARIABLE] = fault
        process = spawn(worker_argv(WORKER_MODULE, (str(run),)), log_file=run / "worker.log", environment=environment)
        self._started[process.pid] = process
        return process.pid

    def wait(self, pid: int) -> int:
        """Return the exit code of an attempt; negative for a signal."""
        return self._started[pid].wait()

    def run(self, run: Path, fault: str = "") -> int:
        """Run an attempt from beginning to end; return its exit code."""
        return self.wait(self.start(run, fault))

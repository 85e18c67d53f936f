"""Two processes that share their steps, forked with what torch's launcher gives them: `tests.fork_server` spares their imports.

The launcher itself starts those of `test_local_executor`, and two launchers on two nodes those of `test_slurm_runs`.
"""

import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore

from loratory.engine.processes.spawn import spawn, worker_argv
from loratory.engine.runs.run import Run
from loratory.engine.training.worker import EXIT_FINISHED
from tests.fork_server import REPOSITORY

RANKS = 2
SECONDS = 1500  # without an answer they would wait for days


class LaunchResult(NamedTuple):
    """How a launch ended: 0 or the first other exit code, and what was written."""

    returncode: int
    stderr: str


def launch_ranks(
    module: str, *arguments: object, folder: Path, environment: Mapping[str, str] | None = None
) -> LaunchResult:
    """Run a module as two processes; as under the launcher, one that fails ends the other.

    Args:
        module: One of those that `tests.fork_server` forks.
        arguments: Its command line.
        folder: Takes what the processes write, as `rank-N.log`.
        environment: Variables in addition to those of a launch.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives each of them
    launch = {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "PYTHONPATH": str(REPOSITORY), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    logs = [folder / f"rank-{rank}.log" for rank in range(RANKS)]
    ranks = [
        spawn(
            worker_argv(module, [str(argument) for argument in arguments]),
            log_file=log,
            environment={**launch, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})},
        )
        for rank, log in enumerate(logs)
    ]
    code = _wait(ranks)
    return LaunchResult(code, "".join(log.read_text() for log in logs))


def train_on_two(run: Run, environment: Mapping[str, str] | None = None) -> None:
    """Train a run to its end as two processes."""
    launch = launch_ranks(
        "loratory.engine.training.worker", run.folder.path, folder=run.folder.path, environment=environment
    )
    assert launch.returncode == EXIT_FINISHED, launch.stderr[-3000:]


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    deadline = time.monotonic() + SECONDS
    try:
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            assert time.monotonic() < deadline, "two processes wait for each other"
            time.sleep(0.02)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM)
        for rank in ranks:
            rank.wait(SECONDS)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    return next((code for code in codes if code), 0)

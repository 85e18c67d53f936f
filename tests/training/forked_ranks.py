"""Two processes that share their steps, forked with what torch's launcher gives them: `tests.fork_server` spares their imports.

The launcher itself starts those of `test_local_executor`, and two launchers those of `two_nodes`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore

from engine.executors.local import Nodes, training_command
from engine.processes.spawn import spawn, worker_argv
from tests.fork_server import REPOSITORY

RANKS = 2
SECONDS = 1500  # without an answer they would wait for days


class Ended(NamedTuple):
    """How a launch ended: 0 or the first other exit code, and what was written."""

    returncode: int
    stderr: str


def launch_ranks(module: str, *arguments: object, folder: Path, environment: Mapping[str, str] | None = None) -> Ended:
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
    return Ended(code, "".join(log.read_text() for log in logs))


@contextmanager
def two_nodes(run: Path, environment: Mapping[str, str] | None = None) -> Iterator[Callable[[], Ended]]:
    """Train a run as two machines do, each with torch's launcher and one process; yields what waits for both to end."""
    # A port that a launcher opens by its number could be taken before; both find this store, which is open already.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = training_command(run, 1, Nodes(RANKS, f"127.0.0.1:{store.port}", run.name, address="127.0.0.1"))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    logs = [run / f"node-{number}.log" for number in range(RANKS)]
    nodes = []
    for log in logs:
        with log.open("wb") as file:
            started = subprocess.Popen(
                command, env=variables | dict(environment or {}), stdout=file, stderr=subprocess.STDOUT
            )
        nodes.append(started)
    try:
        yield lambda: Ended(max(abs(node.wait(SECONDS)) for node in nodes), "".join(log.read_text() for log in logs))
    finally:
        for node in nodes:
            if node.poll() is None:
                node.terminate()  # which ends its worker as well
            node.wait(SECONDS)


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

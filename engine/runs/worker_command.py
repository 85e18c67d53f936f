"""How a training worker is started: its command line, its environment, its log."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.data.hub import hub_access
from engine.hardware.device import Device, visible_only
from engine.processes.environment import Access
from engine.processes.spawn import spawn, worker_argv
from engine.runs.run import ATTEMPT_VARIABLE, RUN_VARIABLE, Run

WORKER_MODULE = "engine.training.worker"

SPACE_VARIABLE = "TRACKIO_SPACE_ID"  # names the Space on the Hub that Trackio sends figures to


class WorkerOrder(NamedTuple):
    """A worker to start."""

    run: Run
    config: RunConfig
    devices: tuple[Device, ...]
    attempt: int


WorkerCommand = Callable[[WorkerOrder], list[str]]


def training_command(order: WorkerOrder) -> list[str]:
    """Return the command line of the worker that trains: one process, or one for each device under torch's launcher.

    The processes meet at a port that the system chooses when it is bound: Accelerate's own launcher has a fixed one, where
    two runs that start at once collide, and reads the person's own configuration.
    """
    folder = str(order.run.folder.path)
    if order.config.run.launcher == "local" or len(order.devices) == 1:
        return worker_argv(WORKER_MODULE, (folder,))
    return [
        *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        # Named, or variables of the environment decide them.
        *("--nnodes", "1", "--nproc-per-node", str(len(order.devices)), "--max-restarts", "0"),
        *("--module", WORKER_MODULE, folder),
    ]


def start_worker(order: WorkerOrder, command: WorkerCommand) -> subprocess.Popen[bytes]:
    """Start the worker so that it outlives us; it sees its own devices only.

    Raises:
        WorkerError: If it cannot be started.
    """
    environment = {
        **visible_only(order.devices),
        ATTEMPT_VARIABLE: str(order.attempt),
        RUN_VARIABLE: order.run.id,
        "PYTHONUNBUFFERED": "1",
    }
    access = access_for(order.config)
    return spawn(command(order), log_file=order.run.folder.log, environment=environment, access=access)


def access_for(config: RunConfig) -> frozenset[Access]:
    """What a training worker may log in to: what its model, its data and its trackers need."""
    access = set(hub_access(config.model, config.dataset))
    if "wandb" in config.training.report_to:
        access.add(Access.WANDB)
    if "trackio" in config.training.report_to:
        access.add(Access.TRACKIO)
        if SPACE_VARIABLE in os.environ:
            access.add(Access.HUB)  # where the Space is
    return frozenset(access)

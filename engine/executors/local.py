"""How a training worker is started: its command line, its environment, its log."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.data.hub import hub_access
from engine.errors import EngineError
from engine.hardware.device import Device, visible_only
from engine.hardware.lease import LeaseBook, LeaseHolder
from engine.processes.environment import Access
from engine.processes.identity import ProcessIdentity
from engine.processes.spawn import spawn, worker_argv
from engine.runs.provenance import run_title
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


class _Taken(NamedTuple):
    """Devices that are still ours."""

    devices: tuple[str, ...]
    title: str


class RunLeases:
    """Takes, passes on and gives back what runs hold.

    Args:
        book: Who holds which device.
        complain: Told what could not be done, by the run that it concerns.
    """

    def __init__(self, book: LeaseBook, complain: Callable[[str, str], None]) -> None:
        self._book = book
        self._complain = complain
        self._ours: dict[str, _Taken] = {}  # by run

    def take(self, run: Run, title: str, devices: Sequence[str]) -> None:
        """Take the devices of a run that is about to be started.

        Raises:
            DeviceError: If somebody else holds one of them.
            StorageError: If that cannot be written down.
        """
        names = tuple(devices)
        self._book.take(names, _holder(run, title, ProcessIdentity.current()))
        self._ours[run.id] = _Taken(names, title)

    def pass_on(self, run: Run, worker: ProcessIdentity | None) -> None:
        """Let the worker have what is still ours; where that fails it is ours until the next call, or until the end."""
        taken = self._ours.get(run.id)
        if taken is None or worker is None:
            return
        try:
            self._book.hand_over(taken.devices, ProcessIdentity.current(), _holder(run, taken.title, worker))
        except (EngineError, OSError) as error:
            self._complain(run.id, f"The device of {run.id} could not be handed to its worker: {error}")
            return
        del self._ours[run.id]

    def hold_again(self, run: Run, worker: ProcessIdentity, devices: Sequence[str]) -> None:
        """A living worker keeps its device, also where the former supervisor died before it had written that down."""
        try:
            self._book.take(devices, _holder(run, run_title(run.folder.read_config()), worker))
        except (EngineError, OSError) as error:
            self._complain(run.id, f"The device of {run.id} could not be leased again: {error}")

    def keep(self, run: Run, worker: ProcessIdentity, devices: Sequence[str]) -> None:
        """Lease the devices of a living worker again where something deleted or damaged the lease."""
        if run.id not in self._ours and any(self._book.holder(device) is None for device in devices):
            self.hold_again(run, worker, devices)

    def worker_of(self, run: Run) -> ProcessIdentity | None:
        """The worker of a run, where a former supervisor wrote it down with the lease."""
        holder = self._book.holder_of_run(run.id)
        return holder.process if holder is not None and holder.process != ProcessIdentity.current() else None

    def devices_of(self, run: Run) -> str:
        """What is held for a run at present, as its state names it."""
        return ", ".join(self._book.devices_of_run(run.id))

    def holder_of(self, run: Run, worker: ProcessIdentity | None) -> LeaseHolder:
        """A run as the holder of its device, for those who wait for it; also where its worker has just ended."""
        try:
            title = run_title(run.folder.read_config())
        except EngineError:
            title = run.id
        return _holder(run, title, worker or ProcessIdentity.current())

    def release(self, run: Run) -> None:
        """Give back all that is held for a run, whoever holds it.

        Raises:
            StorageError: If that cannot be written down; it is to be tried again.
        """
        self._book.release_run(run.id)
        self._ours.pop(run.id, None)


def _holder(run: Run, title: str, process: ProcessIdentity) -> LeaseHolder:
    return LeaseHolder(purpose="training", title=title, process=process, run_id=run.id)

"""One attempt at a run as its supervisor sees it, the interface of an executor that starts it, and the command of its worker.

An executor submits jobs; a job is one attempt at one run, and needs no local process. The contract with the worker is the run
folder, on any machine.
"""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

from loratory.engine.config.run import RunConfig
from loratory.engine.data.hub import hub_access
from loratory.engine.hardware.device import Device, visible_only
from loratory.engine.hardware.lease import LeaseHolder
from loratory.engine.processes.spawn import Access, allocator_environment, spawn, worker_argv
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import ATTEMPT_VARIABLE, RUN_VARIABLE, Run, RunState, StateReason
from loratory.engine.scoring.scorers.judge import key_environment

JobPhase = Literal[
    "waiting",  # submitted, and waiting in the executor's own queue
    "alive",  # started, or about to
    "gone",
    "unknown",  # out of sight; the state of the run does not change
    "never_started",  # no worker ever had this attempt: the run can be queued again
    "superseded",  # a worker of another attempt has the run
]


class JobStatus(NamedTuple):
    """The answer to a poll."""

    phase: JobPhase
    why: StateReason | None = None  # the executor's reason for a wait, or for losing sight of it


class Activity(Protocol):
    """How busy the process of a job is."""

    def is_suspended(self) -> bool:
        """Whether it is stopped by a signal or a debugger."""

    def cpu_seconds(self) -> float | None:
        """Processor time that it has used; None where it is not measured."""


EXIT_REFUSED = 3  # of a worker that the run's folder did not let in

ExecutorVerdict = Literal["out_of_memory", "time_limit", "node_failed", "preempted", "cancelled"]


@dataclass(frozen=True)
class JobEnd:
    """What an executor knows about the end of a job; the worker's events have more detail."""

    exit_code: int | None = None  # negative for a signal; None where it is not known
    on_this_boot: bool = False  # it ran on this machine since it was started last
    machine_restarted: bool = False  # this machine has been restarted since
    lost_host: str | None = None  # of a job that ran elsewhere and is out of sight
    verdict: ExecutorVerdict | None = None  # the executor's own verdict, which has priority over what this machine sees
    cause: str = ""  # the executor's own reason, a sentence that names job and host
    advice: str = ""


class Job(ABC):
    """One attempt at one run, submitted now or by an earlier supervisor."""

    id: str = ""  # the executor's name for it, kept in `state.json`; empty where process.json identifies the worker

    @abstractmethod
    def poll(self, *, has_reported: bool) -> JobStatus:
        """Look at the job; `has_reported` is whether the event log has anything of this attempt.

        Raises:
            EngineError: If the executor does not answer now; the job counts as unchanged.
        """

    @abstractmethod
    def cancel(self) -> None:
        """End the job at once, with everything that it started."""

    @abstractmethod
    def end(self) -> JobEnd:
        """Report how a job ended, after ending the processes that it left behind."""

    @abstractmethod
    def describe(self) -> str:
        """Return where it runs, for `RunState.device`: leased devices, or the executor's words."""

    def request_stop(self) -> None:  # noqa: B027 - most see the folder
        """Ask the job to save and stop, for workers that do not see the run's `control` folder."""

    def fetch_logs(self) -> None:  # noqa: B027 - most write into the folder
        """Bring the worker's output, events and results into the run folder.

        Raises:
            EngineError: If it fails for now. The end of a job is diagnosed only after its logs were fetched, so an executor
                that has lost them for good returns.
        """

    def poll_seconds(self) -> float:
        """Return for how long the last poll is valid, since polling hundreds of waiting jobs is not free."""
        return 0.0

    def activity(self) -> Activity | None:
        """Return how busy its process is; None without a visible process, whose silence then means nothing."""
        return None

    def holder(self, device: str) -> LeaseHolder | None:  # noqa: ARG002
        """Return the job as holder of a device of this machine; None where it does not use it."""
        return None


class JobSpec(NamedTuple):
    """A job to submit."""

    run: Run
    config: RunConfig
    devices: tuple[Device, ...]  # of this machine; none for executors that do not use them
    attempt: int


class Executor(ABC):
    """A run target: it runs jobs."""

    name: ClassVar[str]  # as `RunSection.executor` and `RunState.executor` have it
    uses_local_devices: ClassVar[bool] = False  # the queue gives it devices of this machine; else it has its own queue

    def reserve(self, spec: JobSpec) -> None:  # noqa: B027 - most have a queue of their own
        """Lease what the job needs, before the run's state changes to starting.

        Raises:
            DeviceError: If it is in use; the run stays in the queue.
            StorageError: If that cannot be saved.
        """

    @abstractmethod
    def submit(self, spec: JobSpec) -> Job:
        """Start the job, or queue it with the executor. It outlives this process.

        Raises:
            EngineError: If that fails; the run then fails.
        """

    @abstractmethod
    def attach(self, run: Run, state: RunState) -> Job:
        """Find the job of an attempt by `state.job_id`, process.json, or traces of its submission.

        If nothing is found, for example after a crash while submitting, the job's status is `never_started`.
        """

    def close(self) -> None:  # noqa: B027
        """Stop following jobs, which continue; another process may follow them from now on."""

    def release(self, run: Run) -> None:  # noqa: B027
        """Release everything that is held for a run; do nothing if nothing is.

        Raises:
            StorageError: If it cannot be saved; try again.
        """


WORKER_MODULE = "loratory.engine.training.worker"
WorkerCommand = Callable[[JobSpec], list[str]]


def worker_command(spec: JobSpec) -> list[str]:
    """Return the command line of a worker, with as many processes as its settings name devices for."""
    return training_command(spec.run.folder.path, spec.config.run.processes)


@dataclass(frozen=True)
class Nodes:
    """Machines that train one run together, and where their launchers meet (torch's c10d rendezvous)."""

    count: int
    endpoint: str  # HOST:PORT on one of them, reachable from all
    name: str  # of the meeting, the same for all and of no other run: a scheduler's job id, with the attempt


def training_command(folder: Path, processes: int = 1, nodes: Nodes | None = None, python: str = "") -> list[str]:
    """Return the command line of the worker of a run's folder, or of torch's launcher where several train together.

    On one machine, the processes meet at a port that the system chooses. Accelerate's own launcher has a fixed port, on
    which two runs that start at once collide, and reads the person's own configuration. On several machines, each runs this
    command; all of them see the run's folder, and only the first process writes there.

    Args:
        processes: On each machine, one for each of its devices.
        python: With Loratory, on the machine that trains; this one where empty.
    """
    python = python or sys.executable
    if nodes is None or nodes.count == 1:
        if processes == 1:
            return [python, *worker_argv(WORKER_MODULE, (str(folder),))[1:]]
        meeting = ["--standalone", "--local-addr", "127.0.0.1", "--nnodes", "1"]
    else:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", nodes.endpoint, "--rdzv-id", nodes.name]
        meeting += ["--nnodes", str(nodes.count)]
    return [
        *(python, "-P", "-m", "torch.distributed.run", *meeting),
        # Set explicitly, or environment variables decide them.
        *("--nproc-per-node", str(processes), "--max-restarts", "0"),
        *("--module", WORKER_MODULE, str(folder)),
    ]


def start_worker(spec: JobSpec, command: WorkerCommand) -> subprocess.Popen[bytes]:
    """Start the worker in a session of its own; it sees its own devices only.

    Raises:
        WorkerError: If it cannot be started.
    """
    environment = {
        **allocator_environment(),
        **visible_only(spec.devices),
        ATTEMPT_VARIABLE: str(spec.attempt),
        RUN_VARIABLE: spec.run.id,
        "PYTHONUNBUFFERED": "1",
    }
    # People of a lab must not use logins of the server's account.
    access = frozenset[Access]()
    if not read_provenance(spec.run.folder).person:
        access, environment = _access_for(spec.config), environment | key_environment(spec.config.training.rewards)
    return spawn(command(spec), log_file=spec.run.folder.log, environment=environment, access=access)


def _access_for(config: RunConfig) -> frozenset[Access]:
    """Return what a training worker may log in to: what its model, its data and its trackers need."""
    trackers = config.training.report_to
    access = set(hub_access(config.model, config.dataset))
    access |= {tracker for name, tracker in (("wandb", Access.WANDB), ("trackio", Access.TRACKIO)) if name in trackers}
    if "trackio" in trackers and "TRACKIO_SPACE_ID" in os.environ:
        access.add(Access.HUB)  # the Space that Trackio sends figures to is there
    return frozenset(access)

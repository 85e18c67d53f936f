"""One attempt at a run as its supervisor sees it, and the interface of an executor, which starts the attempt somewhere.

An executor submits jobs; a job is one attempt at one run, and needs no local process. The contract with the worker is the run
folder, on any machine.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

from engine.config.run import RunConfig
from engine.hardware.device import Device
from engine.hardware.lease import LeaseHolder
from engine.runs.run import Run, RunState, Why

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
    why: Why | None = None  # the executor's reason for a wait, or for losing sight of it


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
    rebooted: bool = False  # this machine has been restarted since
    lost_host: str | None = None  # of a job that ran elsewhere and is out of sight
    word: ExecutorVerdict | None = None  # the executor's own verdict, which has priority over what this machine sees
    cause: str = ""  # the executor's own reason, a sentence that names job and host
    advice: str = ""


class Job(ABC):
    """One attempt at one run, submitted now or by an earlier supervisor."""

    id: str = ""  # the executor's name for it, kept in `state.json`; empty where process.json identifies the worker

    @abstractmethod
    def poll(self, *, has_reported: bool) -> JobStatus:
        """Look at the job.

        Args:
            has_reported: Whether the event log has anything of this attempt.

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

    def look_seconds(self) -> float:
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
    """A place where jobs run."""

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

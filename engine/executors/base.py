"""The interface of an executor, which starts the worker of a run somewhere and lets its supervisor reach it.

An executor submits jobs; a job is one attempt at one run, and needs no local process. The contract with the worker is the run
folder, on any machine.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from engine.config.run import RunConfig
from engine.hardware.device import Device
from engine.runs.job import Job
from engine.runs.run import Run, RunState


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

    def held_for(self, run: Run) -> str:  # noqa: ARG002
        """Return the devices that are held for a run at present, as its state names them."""
        return ""

    def release(self, run: Run) -> None:  # noqa: B027
        """Release everything that is held for a run; do nothing if nothing is.

        Raises:
            StorageError: If it cannot be saved; try again.
        """

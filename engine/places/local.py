"""Jobs on this machine: a process in its own session, which leases its devices and outlives the server."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from loratory.engine.errors import EngineError
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder, lease_name
from loratory.engine.processes.liveness import ProcessIdentity, end_group
from loratory.engine.processes.spawn import cap_log
from loratory.engine.runs import job as jobs
from loratory.engine.runs.activity import ReportedActivity
from loratory.engine.runs.history.events import is_last_word
from loratory.engine.runs.history.log import last_event
from loratory.engine.runs.provenance import run_title
from loratory.engine.runs.run import RUN_VARIABLE, Run, RunState, StateReason


class LocalContext(NamedTuple):
    """What the executors of this machine share."""

    book: LeaseBook
    report: Callable[[str, str], None]  # logs a problem of a run, by its id
    claim_seconds: float  # for a worker that a previous supervisor may have started to appear
    unseen_seconds: float = 150.0  # for a worker on another host to obey; file servers show a request after up to 60 s


class LocalExecutor(jobs.Executor):
    """Starts one process on this machine.

    The devices of a run belong to this process while its worker starts, then to the worker, and are released at its end.
    """

    name = "local"
    uses_local_devices = True

    def __init__(self, context: LocalContext, command: jobs.WorkerCommand | None = None) -> None:
        self.context = context
        self._book = context.book
        self._command = command or jobs.worker_command

    def reserve(self, spec: jobs.JobSpec) -> None:
        self._book.take(_names(spec), _holder(spec.run, ProcessIdentity.current()))

    def submit(self, spec: jobs.JobSpec) -> jobs.Job:
        process = jobs.start_worker(spec, self._command)
        job = LocalJob(spec.run, spec.attempt, _names(spec), self, process, ProcessIdentity.from_pid(process.pid))
        job.renew_lease()
        return job

    def attach(self, run: Run, state: RunState) -> jobs.Job:
        devices = tuple(state.device.split(", ")) if state.device else self._book.devices_of_run(run.id)
        holder = self._book.holder_of_run(run.id)  # a previous supervisor has saved the worker in the lease
        worker = holder.process if holder is not None and holder.process != ProcessIdentity.current() else None
        job = LocalJob(run, state.attempt, devices, self, spawned_process=worker)
        job.renew_lease()
        return job

    def release(self, run: Run) -> None:
        self._book.release_run(run.id)

    def lease(self, run: Run, worker: ProcessIdentity, devices: Sequence[str]) -> None:
        """Lease devices to a living worker; where that fails, it is tried again at the next poll."""
        holders = [self._book.holder(device) for device in devices]
        if all(holder is not None and holder.process == worker for holder in holders):
            return
        giver = next((holder.process for holder in holders if holder is not None and holder.run_id == run.id), None)
        try:
            holder = _holder(run, worker)
            if giver is None:  # its supervisor died before it, or the lease is damaged
                self._book.take(devices, holder)
            else:
                self._book.hand_over(devices, giver, holder)
        except (EngineError, OSError) as error:
            self.context.report(run.id, f"The device of {run.id} could not be leased to its worker: {error}")


@dataclass(eq=False)
class LocalJob(jobs.Job):
    """A worker process of this machine, or of another one that shares the home."""

    run: Run
    attempt: int
    devices: tuple[str, ...]  # leased for it
    executor: LocalExecutor
    process: subprocess.Popen[bytes] | None = None  # the worker where we are its parent; None after a restart of ours
    spawned_process: ProcessIdentity | None = None  # the worker where it is known from its start
    exit_code: int | None = field(default=None, init=False)
    since: float = field(default_factory=time.monotonic, init=False)
    cancelled_elsewhere: float | None = field(default=None, init=False)  # when another host's worker was asked to end

    def worker(self) -> ProcessIdentity | None:
        """Return the worker of this attempt, alive or not, if it is known."""
        record = self.run.folder.read_worker()
        if record is not None and record.attempt == self.attempt:
            return ProcessIdentity.model_validate(record.model_dump())
        return self.spawned_process

    def poll(self, *, has_reported: bool) -> jobs.JobStatus:
        self.renew_lease()
        if self.process is not None:
            return self._poll_child(self.process)
        is_locked = self.run.folder.has_living_worker()
        worker = self.worker()  # after the lock was read, so a worker that came and ended meanwhile is not missed
        if worker is not None and worker.is_of_another_host():
            return self._poll_elsewhere(worker.host, is_locked)
        if is_locked:
            return jobs.JobStatus("alive")
        if worker is not None:
            return jobs.JobStatus("alive" if worker.is_alive() else "gone")
        if has_reported:
            return jobs.JobStatus("gone")
        # A previous supervisor may have started a worker without saving its identity; it would appear soon.
        may_come = time.monotonic() - self.since < self.executor.context.claim_seconds
        return jobs.JobStatus("alive" if may_come else "never_started")

    def _poll_elsewhere(self, host: str, is_locked: bool) -> jobs.JobStatus:
        """Poll a worker of another host, whose pids, boots and locks are not visible here.

        It is gone if its last event says so, or if a person who cancelled it got no answer.
        """
        cancelled, last = self.cancelled_elsewhere, last_event(self.run.folder.events)
        is_given_up = cancelled is not None and time.monotonic() - cancelled > self.executor.context.unseen_seconds
        has_ended = last is not None and last.attempt == self.attempt and is_last_word(last.data)
        if not is_locked and (has_ended or is_given_up):
            return jobs.JobStatus("gone")
        cause = f"Cannot check from here whether the worker on {host} still runs."
        return jobs.JobStatus(
            "unknown", StateReason("executor_unreachable", cause, f"If it is gone on {host}, cancel and resume it.")
        )

    def _poll_child(self, process: subprocess.Popen[bytes]) -> jobs.JobStatus:
        self.exit_code = process.poll()
        if self.exit_code is None:
            return jobs.JobStatus("alive")
        if self.exit_code != jobs.EXIT_REFUSED or not self.run.folder.has_living_worker():
            return jobs.JobStatus("gone")
        # A person or a scheduler had started a worker before ours. If it has our number, it is our job from now on,
        # without the queue: it may end at any moment, and a waiting run would be started.
        record = self.run.folder.read_worker()
        if record is None or record.attempt != self.attempt:
            return jobs.JobStatus("superseded")
        self.process = self.exit_code = self.spawned_process = None
        return jobs.JobStatus("alive")

    def poll_seconds(self) -> float:
        """Return two seconds once the worker is 40 s old, and less before: two seconds are little of a long run."""
        return min(2.0, (time.monotonic() - self.since) / 20)

    def renew_lease(self) -> None:
        """Lease its devices to the worker as soon as that is known."""
        worker = self.worker()
        if worker is not None and self.devices and worker.is_alive():
            self.executor.lease(self.run, worker, self.devices)

    def cancel(self) -> None:
        worker = self.worker()
        if worker is not None and not worker.kill() and worker.is_of_another_host():
            self.cancelled_elsewhere = self.cancelled_elsewhere or time.monotonic()
        self._end_group()

    def _end_group(self) -> None:
        """End all processes that the worker started; none of them outlives the run."""
        record = self.run.folder.read_worker()
        groups = {self.process.pid} if self.process is not None else set()
        if record is not None and record.is_of_this_boot():
            groups.add(record.process_group)
        for group in groups:
            end_group(group, (RUN_VARIABLE, self.run.id))

    def end(self) -> jobs.JobEnd:
        self._end_group()
        worker = self.worker()
        on_this_boot = worker is None or worker.is_of_this_boot()
        lost_host = worker.host if worker is not None and worker.is_of_another_host() else None
        return jobs.JobEnd(
            self.exit_code, on_this_boot, machine_restarted=not on_this_boot and lost_host is None, lost_host=lost_host
        )

    def describe(self) -> str:
        return ", ".join(self.devices)

    def fetch_logs(self) -> None:
        writer = self.run.folder.read_worker()
        if writer is None or not writer.is_of_another_host():  # which would write behind the old end
            cap_log(self.run.folder.log)

    def activity(self) -> jobs.Activity | None:
        worker = self.worker()
        if worker is not None and worker.is_of_another_host():
            return ReportedActivity(self.run.folder, self.attempt)
        return worker

    def holder(self, device: str) -> LeaseHolder | None:
        """Return the run as holder of one of its devices, also where its worker has just ended."""
        if device not in self.devices:
            return None
        worker = None
        try:
            worker = self.worker()
        except OSError as error:
            self.executor.context.report(self.run.id, f"The worker of {self.run.id} cannot be identified: {error}")
        if worker is not None and worker.is_of_another_host():
            return None
        return _holder(self.run, worker or ProcessIdentity.current())


def _names(spec: jobs.JobSpec) -> tuple[str, ...]:
    return tuple(lease_name(device) for device in spec.devices)


def _holder(run: Run, process: ProcessIdentity) -> LeaseHolder:
    try:
        title = run_title(run.folder.read_config())
    except EngineError:
        title = run.id
    return LeaseHolder(purpose="training", title=title, process=process, run_id=run.id, owner=run.owner)

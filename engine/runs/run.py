"""A run on disk: the names of its files, and its state."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from loratory.engine.config.load import config_from_mapping, mapping_from_file
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.errors import RunError, StorageError, SupersededError, explain_os_errors
from loratory.engine.files import read_model, write_atomically
from loratory.engine.processes.liveness import FileLock, ProcessIdentity
from loratory.engine.runs.checkpoints import offered_checkpoints
from loratory.engine.runs.history.events import StatusData, StoppedBy
from loratory.engine.runs.history.log import last_event

State = Literal[
    "queued", "submitted", "starting", "running", "stopping", "completed", "stopped", "failed", "interrupted",
]  # fmt: skip

FINAL_STATES: frozenset[State] = frozenset({"completed", "stopped", "failed", "interrupted"})
RUN_ID = re.compile(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{4}")
STATE_FILE = "state.json"
NOTES_FILE = "notes.json"
EVENTS_FILE = "events.jsonl"

ATTEMPT_VARIABLE = "LORATORY_ATTEMPT"  # set for the worker: which attempt the supervisor started it for
RUN_VARIABLE = "LORATORY_RUN"  # set for the worker and so for its children: whose they are
_JOB_VARIABLES = ("LORATORY_JOB", "SLURM_JOB_ID")  # by which an executor passes the job's id; Slurm sets its own

# A worker is, or should be, running; one in an executor's own queue may begin before its supervisor sees it.
LIVE_STATES: frozenset[State] = frozenset({"submitted", "starting", "running", "stopping"})

_LabWait = Literal[
    "other_persons_run", "running_cap", "weekly_quota", "urgent_run", "maintenance", "free_disk", "other_program"
]
_QueueWait = Literal["memory", "device_in_use", "device_missing", "earlier_run", "resumes", "executor_queue"]
WaitReason = Literal[_QueueWait, _LabWait]
LiveReason = Literal["suspended", "stop_requested", "cancel_requested", "executor_unreachable"]
_QueueEnd = Literal["left_the_queue", "not_started"]
_ReportedEnd = Literal[
    "finished", "stopped_on_request", "time_limit", "cancelled", "sigterm", "sigint", "disk_limit", "worker_failed"
]
_ObservedEnd = Literal["hung", "killed", "crashed", "signal", "exit_code", "out_of_memory"]
_LostEnd = Literal["machine_restarted", "host_lost", "ended_by_executor", "unknown"]
_ExecutorEnd = Literal["preempted", "node_failed", "job_time_limit", "job_cancelled"]  # in the executor's word
EndReason = Literal[_QueueEnd, _ReportedEnd, _ObservedEnd, _LostEnd, _ExecutorEnd]
Reason = Literal[WaitReason, LiveReason, EndReason]

STARTS_ANYWAY: frozenset[Reason | None] = frozenset({"memory", "other_program"})  # where a person may let a run start

# The SIGTERM of a shutdown or a scheduler, whether the worker could save or not, or a restart.
ENDED_BY_THE_SYSTEM: frozenset[Reason] = frozenset({"sigterm", "machine_restarted"})

# An executor took the machine away from a run that should continue: another attempt continues it.
ENDED_BY_THE_EXECUTOR: frozenset[Reason] = frozenset({"preempted", "node_failed", "job_time_limit"})

STOP_REASONS: dict[StoppedBy, EndReason] = {
    "request": "stopped_on_request",
    "cancel": "cancelled",
    "sigterm": "sigterm",
    "sigint": "sigint",
    "disk_limit": "disk_limit",
}


class StateReason(NamedTuple):
    """Why a run is in its state: a value for programs, and sentences for people."""

    reason: Reason | None
    cause: str
    advice: str = ""


class RunState(BaseModel, frozen=True):
    """`state.json`: the state of a run, as its supervisor last saw it."""

    state: State = "queued"
    reason: Reason | None = None  # why it is in this state; None where the state is enough
    cause: str = ""  # the same for people
    advice: str = ""  # what to do about it
    attempt: int = 0  # attempts begun so far; the worker of attempt n reports events with attempt n
    fruitless_attempts: int = 0  # the newest ones in a row that ended without a newer checkpoint
    resumable_step: int | None = None  # of the newest whole checkpoint, from which another attempt could continue
    device: str = ""  # as the lease names it: "cpu", "cuda:0"; else in the words of the executor
    executor: str = "local"  # where the newest attempt runs
    job_id: str = ""  # by which its executor finds it; empty where process.json identifies the worker
    changed: float = 0.0  # seconds since the epoch, as all times here
    started: float | None = None  # of the first attempt
    attempt_started: float | None = None  # when the newest attempt got its devices
    ended: float | None = None
    oom_kills: int | None = None  # the kernel's count when this attempt began
    energy_joules: float | None = None  # measured by its GPUs, over all attempts; None where one was not measured
    energy_meter_joules: float | None = None  # what their meters showed when this attempt began
    silent_since: float | None = None  # when a worker whose silence is unusual last gave a sign
    silence_limit_seconds: float | None = None  # after how long a silence it is ended, as things are
    cancel_seen: float | None = None  # monotonic seconds of this boot, when a supervisor first saw a request to cancel

    @property
    def is_final(self) -> bool:
        """Whether the run stays in this state unless a person acts."""
        return self.state in FINAL_STATES


class WorkerRecord(ProcessIdentity, frozen=True):
    """`process.json`: the worker of the current or last attempt."""

    process_group: int
    attempt: int
    job_id: str = ""  # where an executor named one; else the identity is all there is


class _File:
    """The path of one file in the run directory of a `RunFolder`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: "RunFolder", _: type | None = None) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a run directory, and who writes them."""

    path: Path

    config = _File("config.yaml")  # the RunConfig, complete; written once by the launcher
    provenance = _File("provenance.json")  # what the config was pinned to, and when; written once by the launcher
    dataset_report = _File("dataset.json")  # what the check of its dataset found; written once by the launcher
    notes = _File(NOTES_FILE)  # name, note and tags that a person gave it afterwards
    state = _File(STATE_FILE)  # RunState; written by the supervisor. A run without one is queued
    process = _File("process.json")  # WorkerRecord; written by the worker
    activity = _File("activity.json")  # processor time; written by the worker twice a minute
    lock = _File("lock")  # held by the worker for life
    events = _File(EVENTS_FILE)  # the event log; written by the worker
    chat_mark = _File("chatted")  # exists: its result has answered in the chat
    log = _File("worker.log")  # stdout and stderr of the worker
    control = _File("control")  # requests, from anyone who may see the run
    stop_request = _File("control/stop")  # exists: save and stop
    cancel_request = _File("control/cancel")  # exists: end at once
    start_anyway_request = _File("control/start-anyway")  # exists: start although free memory is below the estimate
    place_request = _File("control/where")  # the place of its next attempts, where its configuration has another
    shared_mark = _File("control/shared")  # exists: its owner shares it with the lab
    job = _File("job.json")  # of an executor elsewhere, what it knows of the job; written by the supervisor
    checkpoints = _File("checkpoints")  # complete trainer states, `step-N` each
    adapter = _File("adapter")  # the final adapter with tokenizer and chat template

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.checkpoints / f"step-{step}"

    def read_config(self) -> RunConfig:
        """Load the saved configuration.

        Raises:
            StorageError: If it cannot be read.
            ConfigError: If a setting is wrong, as after an edit by hand.
        """
        return config_from_mapping(mapping_from_file(self.config))

    def read_dataset_report(self) -> DatasetReport | None:
        """Load the report of the dataset check; None if there is none, or the file cannot be read."""
        return read_model(self.dataset_report, DatasetReport)

    def read_state(self) -> RunState:
        """Load the state. A run without one waits, unless it has begun: it then counts as running until it was checked.

        Raises:
            StorageError: If the file is there and cannot be read.
        """
        state = self.read_saved_state()
        if state is not None:
            return state
        has_left_results = any(path.exists() for path in (self.log, self.checkpoints, self.adapter))
        attempts = self.attempts_seen() or int(has_left_results)
        return RunState(state="running" if attempts else "queued", attempt=attempts)

    def as_offered(self, state: RunState) -> RunState:
        """Return a state with `resumable_step` checked: a checkpoint may have been damaged since the run ended."""
        if state.resumable_step is None:
            return state
        return state.model_copy(update={"resumable_step": self.newest_checkpoint_step()})

    def read_saved_state(self) -> RunState | None:
        """Load the state as it was saved; None where the file is missing or damaged.

        Raises:
            StorageError: If it is there and cannot be read.
        """
        what = f"The state of {self.path.name} cannot be read"
        with explain_os_errors(what, "Check the permissions of the run's folder."):
            try:
                return RunState.model_validate_json(self.state.read_bytes())
            except (FileNotFoundError, IsADirectoryError, ValidationError):
                return None

    def write_state(self, state: RunState) -> None:
        """Replace the state; for the supervisor alone.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        write_atomically(self.state, state.model_dump_json(indent=1))

    def read_worker(self) -> WorkerRecord | None:
        """Return the worker that last claimed the run, alive or not; None where none has, or the record is torn."""
        try:
            return WorkerRecord.model_validate_json(self.process.read_bytes())
        except (FileNotFoundError, IsADirectoryError, PermissionError, ValidationError):
            return None

    def worker_lock(self) -> FileLock:
        """Return the lock of the worker; any other holder keeps a worker from claiming the run meanwhile."""
        return FileLock(self.lock, makes_folder=False)

    @contextlib.contextmanager
    def keep_workers_away(self, timeout_seconds: float) -> Iterator[bool]:
        """Hold the lock of the worker in a block, against workers and deletion; gives whether that was possible."""
        lock = self.worker_lock()
        try:
            yield lock.acquire(timeout_seconds)
        finally:
            lock.release()

    def has_living_worker(self) -> bool:
        """Whether a worker holds the run's lock, even if its pid looks like that of another process."""
        return FileLock(self.lock).is_held_by_another()

    def attempts_seen(self) -> int:
        """Return the highest attempt in the log or `process.json`; the supervisor may have counted further."""
        event, worker = last_event(self.events), self.read_worker()
        return max(event.attempt if event is not None else 0, worker.attempt if worker is not None else 0)

    def next_attempt(self) -> int:
        """Return the number that a worker reports with: what the supervisor counted, or one more than any worker had.

        A worker that was started by hand or by a cluster's scheduler finds no state, or an old one.
        """
        last_attempt, state = self.attempts_seen(), self.read_state()
        return state.attempt if state.attempt > last_attempt else last_attempt + 1

    def newest_checkpoint_step(self) -> int | None:
        """Step of the newest checkpoint that is as it was written; None where there is none."""
        return next((checkpoint.step for checkpoint in offered_checkpoints(self.checkpoints)), None)

    def claim(self) -> "WorkerClaim":
        """Make the calling process the worker of this run until it ends. A worker does this before anything else.

        The supervisor names the attempt in `ATTEMPT_VARIABLE`. A worker that comes so late that its attempt was given
        up meanwhile, or begun by another worker, is refused, so no run is ever executed twice.

        A scheduler that runs a job again, as Slurm does after a preemption, does not know what became of the run: a
        finished run is never claimed, and of one that was submitted as a job, only that job is let in.

        Raises:
            RunError: If another worker has it or had it, it has finished, this attempt was given up, or this is not its job.
            StorageError: If the folder cannot be written.
        """
        lock = self.worker_lock()
        if not lock.acquire(timeout_seconds=1.0):
            raise RunError(f"Another process already works on {self.path.name}.", "Wait for it, or stop it first.")
        attempt_text = os.environ.get(ATTEMPT_VARIABLE, "")
        job_id = next(filter(None, map(os.environ.get, _JOB_VARIABLES)), "")
        try:
            self._require_open(job_id)
            attempt = self._expected_attempt(int(attempt_text)) if attempt_text.isdecimal() else self.next_attempt()
        except (RunError, StorageError):
            lock.release()
            raise
        identity = ProcessIdentity.current().model_dump()
        record = WorkerRecord(**identity, process_group=os.getpgid(0), attempt=attempt, job_id=job_id)
        record_json = record.model_dump_json()
        write_atomically(self.process, record_json)
        return WorkerClaim(self, lock, attempt, record_json.encode())

    def _require_open(self, job_id: str) -> None:
        """Raise RunError where the run has finished, or was submitted as another job than this one."""
        state, last = self.read_saved_state() or RunState(), last_event(self.events)
        has_finished = last is not None and isinstance(last.data, StatusData) and last.data.phase == "finished"
        if state.state == "completed" or (has_finished and self.adapter.is_dir()):  # its result may have been lost
            raise RunError(f"{self.path.name} has finished.", "Copy its settings to train again.")
        if state.state in LIVE_STATES and state.job_id not in ("", job_id):
            ours = f"job {job_id}" if job_id else "no job of its own"
            raise RunError(
                f"{self.path.name} was submitted as job {state.job_id}, and this worker has {ours}.",
                f"Cancel job {state.job_id} first.",
            )

    def _expected_attempt(self, attempt: int) -> int:
        """Return the attempt that the supervisor named; raise RunError where it is over, or another worker had it."""
        state = self.read_state()
        if state.attempt == attempt and state.state in LIVE_STATES and self.attempts_seen() < attempt:
            return attempt
        raise RunError(
            f"Attempt {attempt} at {self.path.name} was given up, or taken by another worker, before it began.",
            "Start or resume it again.",
        )


@dataclass(frozen=True)
class WorkerClaim:
    """Proof that this process is the worker of a run; keep a reference to it for life."""

    folder: RunFolder
    lock: FileLock
    attempt: int
    record: bytes  # its record in `process.json`

    def require_current(self) -> None:
        """Return unless a later worker has the run, which this one may not know by its lock.

        Its attempt may have been given up where it was out of sight, on another host, and not every file system shows the
        locks of other hosts. The record is opened each time, because a file server shows changes at an open. One that is
        missing or torn means nothing.

        Raises:
            SupersededError: If one has.
        """
        with contextlib.suppress(OSError):
            if self.folder.process.read_bytes() == self.record:
                return
        later = self.folder.read_worker()
        if later is not None and later.attempt >= self.attempt:
            raise SupersededError(
                f"Attempt {self.attempt} at {self.folder.path.name} was given up: attempt {later.attempt}, on "
                f"{later.host or 'another host'}, has the run.",
                "This worker writes nothing more.",
            )


@dataclass(frozen=True)
class Run:
    """A run that exists, found by its store."""

    id: str
    owner: str
    folder: RunFolder

"""Jobs that run elsewhere: threads follow them step by step, and the supervisor reads what the last step saw.

A place implements one job (`RemoteJob`) and how it is polled (`RemoteExecutor`). Nothing that the supervisor calls waits for
the place.
"""

import logging
import math
import secrets
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field

from loratory.engine.errors import EngineError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.runs.activity import ReportedActivity
from loratory.engine.runs.control import end_is_requested
from loratory.engine.runs.job import Activity, Executor, Job, JobEnd, JobStatus
from loratory.engine.runs.run import Run, RunFolder, RunState, StateReason

Stage = Literal[
    "unseen",  # submitted by an earlier server, and not polled yet
    "preparing",  # not submitted yet
    "waiting",
    "running",
    "ended",
]

_log = logging.getLogger(__name__)


class SavedJob(BaseModel, frozen=True):
    """`job.json` in a run's folder: the record of one attempt's job, which survives restarts of the server."""

    attempt: int
    # A mark of the job, by which it is found again where its id was not saved.
    number: str = Field(default_factory=lambda: secrets.token_hex(12))
    job_id: str = ""  # the place's own; empty until it is submitted
    is_over: bool = False

    @classmethod
    def read(cls, folder: RunFolder) -> Self | None:
        """Load it; None where the run never had such a job."""
        return read_model(folder.job, cls)

    @classmethod
    def of_attempt(cls, folder: RunFolder, attempt: int) -> Self | None:
        """Load that of an attempt; None where there is none."""
        record = cls.read(folder)
        return record if record is not None and record.attempt == attempt else None

    def save(self, folder: RunFolder) -> Self:
        """Save and return it.

        Raises:
            StorageError: If the disk is full.
        """
        write_atomically(folder.job, self.model_dump_json())
        return self


class JobView(NamedTuple):
    """A job as the last step saw it; replaced as a whole, so other threads may read it at any time."""

    stage: Stage
    reason: str = ""  # why it waits, or what is unusual
    advice: str = ""
    trouble: EngineError | None = None  # why the place does not answer
    is_suspended: bool = False
    end: JobEnd = JobEnd()


Record = TypeVar("Record", bound=SavedJob)
RemoteJobT = TypeVar("RemoteJobT", bound="RemoteJob[Any]")


class RemoteJob(Job, Generic[Record]):
    """A job on its way from submission to its end. Each step does one thing and saves it before the next."""

    def __init__(self, run: Run, record: Record, end: JobEnd = JobEnd()) -> None:  # noqa: B008 - it is frozen
        self.run = run
        self.record = record
        self.view = JobView("ended" if record.is_over else "unseen" if record.job_id else "preparing", end=end)
        self.wants_cancel = False
        self.wake: Callable[[], None] = lambda: None  # lets the next step come soon, because a person waits

    @property
    @abstractmethod
    def pause(self) -> float:
        """Seconds until the next step."""

    def poll(self, *, has_reported: bool) -> JobStatus:
        view = self.view
        if view.stage == "ended":
            return JobStatus("gone")
        why = StateReason("executor_queue", view.reason, view.advice) if view.reason else None
        if view.trouble is not None:
            why = StateReason("executor_unreachable", view.trouble.what, view.trouble.fix)
        may_save = view.stage == "unseen" and end_is_requested(self.run.folder)
        return JobStatus("alive" if view.stage == "running" or has_reported or may_save else "waiting", why)

    def cancel(self) -> None:
        self.wants_cancel = True
        self.wake()

    def end(self) -> JobEnd:
        return self.view.end

    def activity(self) -> Activity | None:
        """Nothing is known of a job that waits, is suspended by its place, or cannot be seen at present."""
        view = self.view
        is_seen = view.stage == "running" and view.trouble is None and not view.is_suspended
        return ReportedActivity(self.run.folder, self.record.attempt) if is_seen else None

    def show_trouble(self, trouble: EngineError) -> None:
        """Note why the place does not answer; the job is unchanged."""
        self.view = self.view._replace(trouble=trouble)

    def close(self, end: JobEnd) -> None:
        """Save that it is over, then show its end."""
        self.save(is_over=True)
        self.view = JobView("ended", end=end)

    def save(self, **changes: object) -> None:
        """Save what is new of it; raises StorageError if the disk is full."""
        record = self.record.model_copy(update=changes)
        if record != self.record:
            self.record = record.save(self.run.folder)


class LostJob(Job):
    """An attempt without a saved record: it was never submitted."""

    def __init__(self, where: str, advice: str) -> None:
        self._where = where
        self._advice = advice

    def poll(self, *, has_reported: bool) -> JobStatus:
        return JobStatus("gone" if has_reported else "never_started")

    def cancel(self) -> None:
        """Do nothing; a job that was never submitted has no process."""

    def end(self) -> JobEnd:
        return JobEnd(cause=f"The record of the job at {self._where} is lost.", advice=self._advice)

    def describe(self) -> str:
        return self._where


class RemoteExecutor(Executor, Generic[RemoteJobT]):
    """A place elsewhere, and the threads that follow its jobs."""

    title: ClassVar[str]
    advice_if_lost: ClassVar[str]
    close_seconds: ClassVar[float]  # for a step that is under way
    pause_seconds: ClassVar[float] = 0.0  # between two steps of a thread, even if many people wait
    steps_all: ClassVar[bool] = False  # whether one step serves all jobs of a thread

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards what is below
        self._due: dict[str, dict[RemoteJobT, float]] = {}  # when the next step of each job is due, by thread
        self.is_closed = False

    @abstractmethod
    def find(self, run: Run, attempt: int) -> RemoteJobT | None:
        """Return the job of an attempt as an earlier server saved it; None if it saved none."""

    @abstractmethod
    def step_jobs(self, jobs: list[RemoteJobT]) -> None:
        """Do the next step of jobs that are due, by `try_step`."""

    def thread_of(self, run: Run) -> str:  # noqa: ARG002
        """Return the name of the thread that follows the job of a run; one follows all where it is the same."""
        return ""

    def attach(self, run: Run, state: RunState) -> Job:
        job = self.find(run, state.attempt)
        if job is None:
            return LostJob(self.title, self.advice_if_lost)
        return self.follow(job)

    def follow(self, job: RemoteJobT) -> RemoteJobT:
        """Follow a job from now on."""
        name = self.thread_of(job.run)
        job.wake = lambda: self._wake(name, job)
        with self._changed:
            if name not in self._due:
                self._due[name] = {}
                threading.Thread(target=self._work, args=(name,), name=f"{self.name}-jobs", daemon=True).start()
            self._due[name][job] = 0.0
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Stop following jobs: of two processes that follow one, each would remove what the other has not fetched yet."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._due, self.close_seconds)

    def try_step(self, job: RemoteJobT, step: Callable[[], None]) -> None:
        """Do a step of a job; a disk that is full, or a refusal, does not concern the other jobs."""
        if self.is_closed:  # another process may follow them now
            return
        try:
            step()
        except Exception as error:
            _log.error("the job of %s could not be followed: %s", job.run.id, error)

    def _wake(self, name: str, job: RemoteJobT) -> None:
        with self._changed:
            if job in self._due.get(name, ()):
                self._due[name][job] = 0.0
                self._changed.notify_all()

    def _work(self, name: str) -> None:
        """Step the jobs of a thread, each when it is due, until none is left."""
        due, last_step = self._due[name], -math.inf
        while True:
            with self._changed:
                if not due or self.is_closed:
                    del self._due[name]
                    self._changed.notify_all()
                    return
                wait = max(min(due.values()), last_step + self.pause_seconds) - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                jobs = list(due) if self.steps_all else [min(due, key=due.__getitem__)]
                due.update(dict.fromkeys(jobs, math.inf))
            self.step_jobs(jobs)
            last_step = time.monotonic()
            with self._changed:
                for job in jobs:
                    if job.view.stage == "ended":
                        del due[job]
                    elif due[job] == math.inf:  # else it was woken meanwhile
                        due[job] = last_step + job.pause

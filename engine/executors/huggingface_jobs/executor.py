"""Runs on Hugging Face Jobs, as the supervisor sees them."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from engine.executors.base import Activity, Executor, Job, JobEnd, JobSpec, JobStatus, LostJob
from engine.executors.huggingface_jobs.flavors import DEFAULT_LIMIT_HOURS
from engine.executors.huggingface_jobs.follower import JobFollower
from engine.executors.huggingface_jobs.login import LoginOf, logins_of
from engine.executors.huggingface_jobs.record import JobRecord, JobRequest
from engine.paths import LoratoryHome
from engine.runs.control import asks_to_end
from engine.runs.run import Run, RunState, Why

_LONG_PAUSE_SECONDS = 60.0
_LONGEST_CLOSE_SECONDS = 10.0  # for a look that is under way

_log = logging.getLogger(__name__)


class JobsExecutor(Executor):
    """Submits jobs to Hugging Face, and follows those of each person in a separate thread, so people do not wait for others.

    Args:
        login_of: Returns a person's login at Hugging Face; a lab without it has none.
        look_seconds: Between two looks at a job.
    """

    name = "jobs"

    def __init__(self, home: LoratoryHome, login_of: LoginOf | None = None, look_seconds: float = 4.0) -> None:
        self._home = home
        self._look_seconds = look_seconds
        self._login_of = login_of or logins_of(home)
        self._changed = threading.Condition()  # guards `_due` and `_is_closed`
        self._is_closed = False
        # When each follower is to be called again, by owner; each owner in it has a thread.
        self._due: dict[str, dict[JobFollower, float]] = defaultdict(dict)

    def submit(self, spec: JobSpec) -> Job:
        """Start to upload the run; raises StorageError if the disk is full."""
        jobs, request, before = spec.config.jobs, JobRequest.read(spec.run.folder), JobRecord.read(spec.run.folder)
        record = JobRecord(
            attempt=spec.attempt,
            namespace=jobs.namespace,
            flavor=request.flavor or jobs.flavor,
            limit_hours=request.limit_hours or jobs.limit_hours or DEFAULT_LIMIT_HOURS,
            earlier_usd=before.cost_usd if before is not None else 0.0,
        )
        return self._follow(spec.run, record.save(spec.run.folder))

    def attach(self, run: Run, state: RunState) -> Job:
        record = JobRecord.read(run.folder)
        if record is None or record.attempt != state.attempt:
            return LostJob("Hugging Face", "See its page.")
        return self._follow(run, record)

    def close(self) -> None:
        """Stop following jobs; two processes that follow one would each remove what the other has not fetched yet."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._due, _LONGEST_CLOSE_SECONDS)

    def _follow(self, run: Run, record: JobRecord) -> HubJob:
        follower = JobFollower(run, record, self._home, self._login_of, self._look_seconds)
        with self._changed:
            has_thread = run.owner in self._due
            self._due[run.owner][follower] = 0.0
            if not has_thread:
                threading.Thread(target=self._work, args=(run.owner,), name="huggingface-jobs", daemon=True).start()
            self._changed.notify_all()
        return HubJob(follower, self._hurry)

    def _hurry(self, follower: JobFollower) -> None:
        """Wake a follower now, because a person waits for it."""
        with self._changed:
            due = self._due.get(follower.run.owner, {})
            if follower in due:
                due[follower] = 0.0
                self._changed.notify_all()

    def _work(self, owner: str) -> None:
        """Step through all followers of a person, each when it is due, until none is left."""
        due = self._due[owner]
        while True:
            with self._changed:
                if not due or self._is_closed:
                    del self._due[owner]
                    self._changed.notify_all()
                    return
                follower, when = min(due.items(), key=lambda one: one[1])
                if (wait := when - time.monotonic()) > 0:
                    self._changed.wait(wait)
                    continue
                due[follower] = float("inf")  # unless it is woken earlier
            try:
                pause = follower.step()
            except Exception as error:  # such as a disk that is full when the end is saved; the other jobs continue
                _log.error("the job of %s could not be followed: %s", follower.run.id, error)
                pause = _LONG_PAUSE_SECONDS
            with self._changed:
                if follower.view.stage == "ended":
                    del due[follower]
                elif due[follower] > time.monotonic():
                    due[follower] = time.monotonic() + pause


class HubJob(Job):
    """A job as its follower last saw it; no call waits for the network."""

    def __init__(self, follower: JobFollower, hurry: Callable[[JobFollower], None]) -> None:
        self._follower = follower
        self._hurry = hurry

    def poll(self, *, has_reported: bool) -> JobStatus:
        stage, words, trouble, _ = self._follower.view
        why = Why("executor_queue", words) if words else None
        if trouble is not None:
            why = Why("executor_unreachable", trouble.what, trouble.fix)
        match stage:
            case "ended":
                return JobStatus("gone")
            case "running":
                return JobStatus("alive", why)
            case "unseen" if has_reported or asks_to_end(self._follower.run.folder):  # it may have something to save
                return JobStatus("alive", why)
        return JobStatus("waiting", why)

    def cancel(self) -> None:
        self._follower.wants_cancel = True
        self._hurry(self._follower)

    def request_stop(self) -> None:
        self._follower.wants_stop = True
        self._hurry(self._follower)

    def end(self) -> JobEnd:
        return self._follower.view.end or JobEnd()

    def describe(self) -> str:
        record = self._follower.record
        return f"{record.hardware or record.flavor} at Hugging Face"

    def activity(self) -> Activity | None:
        """Nothing is known of a job that waits, or that cannot be seen at present."""
        view = self._follower.view
        return super().activity() if view.stage == "running" and view.trouble is None else None

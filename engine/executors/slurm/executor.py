"""Runs on a Slurm cluster, as the supervisor sees them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from engine.config.run import RunConfig
from engine.errors import ClusterError, ClusterUnreachableError, EngineError
from engine.executors.base import Activity, Executor, Job, JobEnd, JobSpec, JobStatus, LostJob
from engine.executors.slurm.commands import JobLine, Slurm
from engine.executors.slurm.fetch import Fetch
from engine.executors.slurm.follower import SlurmFollower
from engine.executors.slurm.place import ClusterPlace, read_place
from engine.executors.slurm.record import JobResources, SlurmRecord
from engine.paths import LoratoryHome
from engine.runs.activity import ReportedActivity
from engine.runs.control import asks_to_end
from engine.runs.history.events import is_last_word
from engine.runs.history.log import last_event
from engine.runs.provenance import read_provenance
from engine.runs.run import Run, RunState, Why

_LONGEST_CLOSE_SECONDS = 2.0  # for a command that is under way; what it does is found again
_SUBMITTING_SECONDS = 5.0  # of one look, however many runs are to be submitted
_HURRY_SECONDS = 1.0  # between two queries, even if many people wait
_WAITING_LOOK_SECONDS = 4.0  # between two looks of the supervisor at a job that waits
_EXITS_WITH_A_WORD = (0, 1)  # of a worker that finished, stopped or failed by itself
_FILE_SERVER_SECONDS = 60.0  # for which a file server may show old content
_OTHER_DEVICE = 1.2  # times the memory that was predicted for a device of another place

_log = logging.getLogger(__name__)


class SlurmExecutor(Executor):
    """Submits jobs to Slurm and follows all of them in one thread, with one query of the queue.

    Nothing that the supervisor calls waits for Slurm.

    Args:
        place: Returns the current description of the cluster.
        slurm: Slurm's commands; tests replace them.
    """

    name = "slurm"

    def __init__(
        self, home: LoratoryHome, place: Callable[[], ClusterPlace] | None = None, slurm: Slurm | None = None
    ) -> None:
        self._home = home
        self._place = place or (lambda: read_place(home))
        self._slurm = slurm
        self._changed = threading.Condition()  # guards what is below
        self._followers: list[SlurmFollower] = []
        self._thread: threading.Thread | None = None
        self._is_hurried = self._is_closed = False

    def submit(self, spec: JobSpec) -> Job:
        """Begin to submit the run.

        Raises:
            ClusterError: If no cluster was set up.
            ConfigError: If cluster.yaml has a mistake.
            StorageError: If the disk is full.
        """
        place = self._place()
        resources = _resources(spec.config, place, spec.run)
        record = SlurmRecord(
            attempt=spec.attempt,
            resources=resources,
            warning_seconds=min(place.warning_seconds, int(resources.limit_minutes * 60 / 4)),
        )
        return self._follow(spec.run, record.save(spec.run.folder), place, spec.config)

    def attach(self, run: Run, state: RunState) -> Job:
        record = SlurmRecord.read(run.folder)
        if record is None or record.attempt != state.attempt:
            return LostJob("Slurm", "Look for it with squeue.")
        try:
            place, config = self._place(), run.folder.read_config()
        except EngineError as error:  # a mistake in cluster.yaml does not affect running jobs
            _log.error("%s: %s", run.id, error)
            place, config = ClusterPlace(), None
        if record.is_over and record.job_id and not record.end_state:  # its worker went on after it was given up
            record = record.changed(run.folder, is_over=False)
        last = Why(state.reason, state.cause, state.advice) if state.state == "submitted" else None
        return self._follow(run, record, place, config, last)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LONGEST_CLOSE_SECONDS)

    def hurry(self) -> None:
        """Query the queue soon, because a person waits."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def _follow(
        self, run: Run, record: SlurmRecord, place: ClusterPlace, config: RunConfig | None, last: Why | None = None
    ) -> SlurmJob:
        slurm = self._slurm or Slurm(place.command_seconds)
        fetch = Fetch(run, config) if config is not None and place.offline else None
        follower = SlurmFollower(run, record, place, slurm, fetch)
        with self._changed:
            self._followers.append(follower)
            self._is_hurried = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="slurm", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return SlurmJob(follower, self.hurry, last)

    def _work(self) -> None:
        """Query all jobs every few seconds, until the executor is closed."""
        last_look = float("-inf")
        while True:
            with self._changed:
                while not self._is_closed:
                    self._followers = [one for one in self._followers if not one.is_over]
                    followers = list(self._followers)
                    pause = min((one.place.poll_seconds for one in followers), default=None)
                    if pause is not None and self._is_hurried:
                        pause = min(pause, _HURRY_SECONDS)
                    wait = None if pause is None else last_look + pause - time.monotonic()
                    if wait is not None and wait <= 0:
                        break
                    self._changed.wait(wait)
                if self._is_closed:
                    return
                self._is_hurried = False
            self._look(followers)
            last_look = time.monotonic()

    def _look(self, followers: list[SlurmFollower]) -> None:
        slurm = self._slurm or Slurm(followers[0].place.command_seconds)
        try:
            queue = slurm.queue()
        except EngineError as error:
            for follower in followers:
                follower.unreachable(error)
            with contextlib.suppress(EngineError):  # it may be squeue alone that fails
                for follower in followers:
                    follower.cancel_unseen()
            return
        own = defaultdict[str, list[JobLine]](
            list
        )  # by each word of a job's comment; one of the words is the job's number
        for line in queue:
            for word in line.comment.split():
                own[word].append(line)
        # A submission takes a second or more: those who wait for a cancel or an end come first.
        followers.sort(key=lambda one: (not one.wants_cancel, not one.record.job_id))
        began = time.monotonic()
        for follower in followers:
            if self._is_closed:  # another process may follow them now
                return
            if not follower.record.job_id and time.monotonic() - began > _SUBMITTING_SECONDS:
                self.hurry()
                return
            self._step(follower, own.get(follower.record.number, []))

    def _step(self, follower: SlurmFollower, own: list[JobLine]) -> None:
        try:
            follower.step(own)
        except ClusterUnreachableError as error:
            follower.unreachable(error)
        except ClusterError as error:  # such as a release that was refused: the queue will show what became of the job
            _log.error("%s: %s", follower.run.id, error)
        except Exception as error:  # such as a disk that is full; the other jobs continue
            _log.error("the job of %s could not be followed: %s", follower.run.id, error)


def _resources(config: RunConfig, place: ClusterPlace, run: Run) -> JobResources:
    """Return what a job asks for; what only a start on the cluster settles comes, for a run moved here, from its estimate.

    The estimate was of another device, hence its margin. GPUs: the smallest type that covers it, else the largest.
    """
    resources = JobResources.of(config, place)
    predicted_gib = (read_provenance(run.folder).predicted_bytes or 0) * _OTHER_DEVICE / 2**30
    if not resources.gpus and config.slurm.memory_gib is None:
        return resources.model_copy(update={"memory_gib": max(resources.memory_gib, predicted_gib)})
    if not resources.gpus or resources.gpu_type or not place.gpu_types:
        return resources
    kinds = sorted(place.gpu_types, key=lambda kind: kind.memory_gib)
    fits = (kind for kind in kinds if 0 < predicted_gib <= kind.memory_gib)
    return resources.model_copy(update={"gpu_type": next(fits, kinds[-1]).name})


class SlurmJob(Job):
    """A job as its follower last saw it; no call waits for Slurm."""

    def __init__(self, follower: SlurmFollower, hurry: Callable[[], None], last: Why | None = None) -> None:
        self._follower = follower
        self._hurry = hurry
        self._last = last  # why it waited when an earlier supervisor saw it
        self._ended_seen = 0.0

    @property
    def id(self) -> str:  # type: ignore[override]
        """The id that Slurm gave the job, once known."""
        return self._follower.record.job_id

    def poll(self, *, has_reported: bool) -> JobStatus:
        view = self._follower.view
        why = Why("executor_queue", view.words, view.advice) if view.words else None
        if view.trouble is not None:
            why = Why("executor_unreachable", view.trouble.what, view.trouble.fix)
        match view.stage:
            case "ended":
                return JobStatus("gone")
            case "running":
                return JobStatus("alive", why)
            case "unseen" if has_reported or asks_to_end(self._follower.run.folder):  # it may have something to save
                return JobStatus("alive", why)
            case "unseen":
                return JobStatus("waiting", why or self._last)
        if has_reported and self._follower.record.nodes == "":
            self._hurry()  # its worker ended before the next query of the queue
        return JobStatus("alive" if has_reported else "waiting", why)

    def look_seconds(self) -> float:
        return _WAITING_LOOK_SECONDS if self._follower.view.stage in ("waiting", "preparing") else 0.0

    def cancel(self) -> None:
        self._follower.wants_cancel = True
        self._hurry()

    def end(self) -> JobEnd:
        return self._follower.view.end or JobEnd()

    def fetch_logs(self) -> None:
        """Wait a while for the worker's last event, which a file server may show later than Slurm shows the end."""
        record, folder = self._follower.record, self._follower.run.folder
        has_a_word = record.end_state in ("COMPLETED", "FAILED") and record.exit_code in _EXITS_WITH_A_WORD
        if not self._follower.is_over or not has_a_word:
            return
        last = last_event(folder.events)
        if last is not None and last.attempt == record.attempt and is_last_word(last.data):
            return
        self._ended_seen = self._ended_seen or time.monotonic()
        if time.monotonic() - self._ended_seen < _FILE_SERVER_SECONDS:
            raise ClusterError(
                f"Job {record.job_id} has ended, and its last events are not visible here yet.",
                "Loratory waits for them.",
            )

    def describe(self) -> str:
        record = self._follower.record
        return " · ".join(filter(None, (f"slurm {record.job_id}".strip(), record.nodes, record.resources.words)))

    def activity(self) -> Activity | None:
        """Nothing is known of a job that waits, is suspended by Slurm, or cannot be seen at present."""
        view = self._follower.view
        is_seen = view.stage == "running" and view.trouble is None and not view.is_suspended
        return ReportedActivity(self._follower.run.folder, self._follower.record.attempt) if is_seen else None

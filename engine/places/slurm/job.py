"""Jobs of Slurm: each submitted held, saved, released, and followed by the queue, the controller, or its worker alone."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ClusterError, ClusterUnreachableError, EngineError
from loratory.engine.files import size_and_time
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.follower import JobView, RemoteExecutor, RemoteJob
from loratory.engine.places.slurm import place as places
from loratory.engine.places.slurm.commands import JobLine, Slurm
from loratory.engine.places.slurm.fetch import Fetch
from loratory.engine.places.slurm.script import job_options, job_script
from loratory.engine.runs.history.events import is_last_word
from loratory.engine.runs.history.log import last_event
from loratory.engine.runs.job import JobEnd, JobSpec, JobStatus
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import Run

_MISSES = 3  # queries of the queue in a row that do not show a job, before its worker decides
# Of a worker whose job Slurm has forgotten: it writes twice a minute, and a file server may show that a minute later.
_SILENT_SECONDS = 120.0
_TOO_MANY = "MaxSubmitJob"  # in Slurm's refusal where an account or QoS has as many jobs in the queue as it may have
_TOO_MANY_SECONDS = 30.0  # until such a submission is tried again
_WARNED_EARLIER_SECONDS = 65.0  # Slurm may warn a minute earlier than it was asked to
_WAITING_POLL_SECONDS = 4.0  # between two polls of a job that waits
_REPORTED_EXITS = (0, 1)  # of a worker that finished, stopped or failed by itself
_FILE_SERVER_SECONDS = 60.0  # for which a file server may show old content


class SlurmJob(RemoteJob[places.SlurmRecord]):
    """A job of a cluster; only the executor's thread calls `step`."""

    def __init__(
        self, run: Run, record: places.SlurmRecord, place: places.ClusterPlace, slurm: Slurm, fetch: Fetch | None = None
    ) -> None:
        super().__init__(run, record, places.job_end(record))
        self.place = place
        self._slurm = slurm
        self._fetch = fetch
        self._misses = 0
        self._signs: object = None  # sizes and times of what the worker writes, and when they changed
        self._signs_changed = 0.0
        self._submits_from = 0.0
        self._ended_seen = 0.0

    @property
    def id(self) -> str:  # type: ignore[override]
        """The id that Slurm gave the job, once known."""
        return self.record.job_id

    @property
    def pause(self) -> float:
        return self.place.poll_seconds

    def poll(self, *, has_reported: bool) -> JobStatus:
        if has_reported and not self.record.nodes and self._is_before_start():
            self.wake()  # its worker ended before the next query of the queue
        return super().poll(has_reported=has_reported)

    def poll_seconds(self) -> float:
        return _WAITING_POLL_SECONDS if self._is_before_start() else 0.0

    def _is_before_start(self) -> bool:
        return self.view.stage in ("waiting", "preparing") and bool(self.view.reason)

    def describe(self) -> str:
        record = self.record
        return " · ".join(filter(None, (f"slurm {record.job_id}".strip(), record.nodes, record.resources.label)))

    def fetch_logs(self) -> None:
        """Wait a while for the worker's last event, which a file server may show later than Slurm shows the end."""
        record = self.record
        reported_its_end = record.end_state in ("COMPLETED", "FAILED") and record.exit_code in _REPORTED_EXITS
        if self.view.stage != "ended" or not reported_its_end or self._has_final_event():
            return
        self._ended_seen = self._ended_seen or time.monotonic()
        if time.monotonic() - self._ended_seen < _FILE_SERVER_SECONDS:
            raise ClusterError(
                f"Job {record.job_id} has ended, and its last events are not visible here yet.",
                "Loratory waits for them.",
            )

    def _has_final_event(self) -> bool:
        last = last_event(self.run.folder.events)
        return last is not None and last.attempt == self.record.attempt and is_last_word(last.data)

    def step(self, queue: Sequence[JobLine]) -> None:
        """Do the next step of the job, from the lines of Slurm's queue that have its number in their comment.

        Raises:
            ClusterError: If Slurm refuses something; the queue will show what became of the job.
            StorageError: If the disk is full; saving is tried again.
        """
        try:
            self._advance([line for line in queue if self.record.number in line.comment.split()])
        except ClusterUnreachableError as error:
            self.show_trouble(error)

    def _advance(self, own: list[JobLine]) -> None:
        """Do what is next: submit the job, release it, show what the queue has of it."""
        if not self.record.job_id and not self._find_or_submit(own):
            return
        for line in own:
            # Two submissions of one attempt: the answer to the first was lost. Only the one of the record is released.
            if line.id != self.record.job_id and line.state not in places.ENDED_STATES:
                self._slurm.cancel(line.id)
        own_line = next((line for line in own if line.id == self.record.job_id), None)
        if not self.record.is_released and not self.wants_cancel:
            own_line = self._release(own_line)
        self._update_view(own_line)
        self.cancel_if_wanted()

    def _find_or_submit(self, own: list[JobLine]) -> bool:
        """Return whether the job has an id: from the queue, where we ended before it was saved, or from its submission."""
        if own:
            self.save(job_id=own[0].id)
            return True
        if not self.wants_cancel:
            return self._submit()
        if self._fetch is not None:
            self._fetch.end()
        self.close(JobEnd(verdict="cancelled", cause="It left the queue before it was submitted to Slurm."))
        return False

    def _release(self, line: JobLine | None) -> JobLine | None:
        """Let Slurm start the job, and return its line as it is then."""
        if line is None or line.state in places.WAITING_STATES:
            self._slurm.release(self.record.job_id)
            line = line._replace(reason="None") if line is not None else None
        self.save(is_released=True)
        return line

    def cancel_if_wanted(self) -> None:
        """Cancel the job where that is wanted, also while the queue cannot be read.

        Raises:
            ClusterError: If Slurm does not answer, or refuses.
        """
        if not self.wants_cancel or not self.record.job_id or self.view.stage == "ended":
            return
        # What a person wants to end at once saves nothing.
        end = self._slurm.kill if self.view.stage == "running" else self._slurm.cancel
        end(self.record.job_id)

    def _submit(self) -> bool:
        try:
            waits_for = self._fetch.poll() if self._fetch is not None else None
            if waits_for is not None:
                self.view = JobView("preparing", waits_for)
            if waits_for is not None or time.monotonic() < self._submits_from:
                return False
            options = job_options(self.run, self.record, self.place)
            script = job_script(self.run, self.record, self.place)
            self._slurm.require_possible(script, options)
            job_id = self._slurm.submit(script, options)
        except ClusterUnreachableError:
            raise
        except EngineError as error:
            if _TOO_MANY not in error.what:
                self.close(JobEnd(cause=error.what, advice=error.fix))
                return False
            self.view = JobView(
                "preparing", "Slurm takes no more jobs of this account at present; it is submitted later."
            )
            self._submits_from = time.monotonic() + _TOO_MANY_SECONDS
            return False
        self.save(job_id=job_id)
        return True

    def _update_view(self, line: JobLine | None) -> None:
        self._misses += line is None
        if line is None and self._misses > 1:  # not yet in a queue that was read before its submission
            line = self._slurm.find(self.record.job_id)
            if line is not None and line.comment and self.record.number not in line.comment:
                line = None  # a job of another controller, or before its numbers began again
        if line is None:
            self._judge_by_worker()
            return
        self._misses = 0
        if line.nodes:
            self.save(nodes=line.nodes)
        if line.state in places.ENDED_STATES:
            self.save(end_state=line.state, exit_code=line.exit_code, near_limit=self._ended_near_limit(line))
            self.close(places.job_end(self.record))
        elif line.state in places.WAITING_STATES:
            self.view = JobView("waiting", *places.describe_wait(line))
        else:
            is_suspended = line.state in ("SUSPENDED", "STOPPED")
            reason = f"Slurm has suspended job {line.id}." if is_suspended else ""
            self.view = JobView("running", reason, is_suspended=is_suspended)

    def _judge_by_worker(self) -> None:
        """Judge a job that Slurm does not know by what its worker wrote into the run's folder."""
        job_id = self.record.job_id
        if self._misses < _MISSES:
            if self.view.stage in ("unseen", "preparing") and self._misses == 1:
                self.view = JobView("waiting", f"Waiting at Slurm: job {job_id}.")
        elif self._worker_may_live():
            self.view = JobView("running", f"Slurm does not list job {job_id}, and its worker still writes.")
        else:
            self.close(places.job_end(self.record))

    def _worker_may_live(self) -> bool:
        folder = self.run.folder
        if folder.has_living_worker():
            return True
        worker = folder.read_worker()
        if worker is None or worker.attempt != self.record.attempt or self._has_final_event():
            return False
        liveness = worker.liveness()
        if liveness != "unknown":
            return liveness == "alive"
        signs, now = tuple(map(size_and_time, (folder.events, folder.log, folder.activity))), time.monotonic()
        if signs != self._signs:
            self._signs, self._signs_changed = signs, now
        return now - self._signs_changed < _SILENT_SECONDS

    def _ended_near_limit(self, line: JobLine) -> bool:
        if line.start_time is None or line.end_time is None or line.limit_seconds is None:
            return False
        warned_at = line.limit_seconds - self.record.warning_seconds - _WARNED_EARLIER_SECONDS
        return line.end_time - line.start_time >= warned_at


_SUBMITTING_SECONDS = 5.0  # of one step, however many runs are to be submitted
_OTHER_DEVICE = 1.2  # times the memory that was predicted for a device of another place

_log = logging.getLogger(__name__)


class SlurmExecutor(RemoteExecutor[SlurmJob]):
    """Submits jobs to Slurm and follows all of them in one thread, with one query of the queue.

    Args:
        place: Returns the current description of the cluster.
        slurm: Slurm's commands; tests replace them.
    """

    name = "slurm"
    title = "Slurm"
    advice_if_lost = "Look for it with squeue."
    close_seconds = 2.0  # what a command does that is under way is found again
    pause_seconds = 1.0
    steps_all = True

    def __init__(
        self, home: LoratoryHome, place: Callable[[], places.ClusterPlace] | None = None, slurm: Slurm | None = None
    ) -> None:
        super().__init__()
        self._place = place or (lambda: places.read_place(home))
        self._slurm = slurm

    def submit(self, spec: JobSpec) -> SlurmJob:
        """Begin to submit the run.

        Raises:
            ClusterError: If no cluster was set up.
            ConfigError: If cluster.yaml has a mistake.
            StorageError: If the disk is full.
        """
        place = self._place()
        resources = _resources(spec.config, place, spec.run)
        warning_seconds = min(place.warning_seconds, int(resources.limit_minutes * 60 / 4))
        record = places.SlurmRecord(attempt=spec.attempt, resources=resources, warning_seconds=warning_seconds)
        return self.follow(self._job(spec.run, record.save(spec.run.folder), place, spec.config))

    def find(self, run: Run, attempt: int) -> SlurmJob | None:
        record = places.SlurmRecord.of_attempt(run.folder, attempt)
        if record is None:
            return None
        try:
            place, config = self._place(), run.folder.read_config()
        except EngineError as error:  # a mistake in cluster.yaml does not affect running jobs
            _log.error("%s: %s", run.id, error)
            place, config = places.ClusterPlace(), None
        if record.is_over and record.job_id and not record.end_state:  # its worker continued after it was given up
            record = record.model_copy(update={"is_over": False}).save(run.folder)
        return self._job(run, record, place, config)

    def _job(
        self, run: Run, record: places.SlurmRecord, place: places.ClusterPlace, config: RunConfig | None
    ) -> SlurmJob:
        fetch = Fetch(run, config) if config is not None and place.offline else None
        return SlurmJob(run, record, place, self._slurm or Slurm(place.command_seconds), fetch)

    def step_jobs(self, jobs: list[SlurmJob]) -> None:
        slurm = self._slurm or Slurm(jobs[0].place.command_seconds)
        try:
            queue = slurm.queue()
        except EngineError as error:
            for job in jobs:
                job.show_trouble(error)
            with contextlib.suppress(EngineError):  # it may be squeue alone that fails
                for job in jobs:
                    job.cancel_if_wanted()
            return
        # A submission takes a second or more: those who wait for a cancel or an end come first.
        jobs.sort(key=lambda job: (not job.wants_cancel, not job.record.job_id))
        began = time.monotonic()
        for job in jobs:
            if not job.record.job_id and time.monotonic() - began > _SUBMITTING_SECONDS:
                job.wake()
                return
            self.try_step(job, partial(job.step, queue))


def _resources(config: RunConfig, place: places.ClusterPlace, run: Run) -> places.JobResources:
    """Return what a job asks for; what only a start on the cluster settles comes, for a run moved here, from its estimate.

    The estimate was of another device, hence its margin. GPUs: the smallest type that covers it, else the largest.
    """
    resources = places.JobResources.from_config(config, place)
    predicted_gib = (read_provenance(run.folder).predicted_bytes or 0) * _OTHER_DEVICE / 2**30
    if not resources.gpus and config.slurm.memory_gib is None:
        return resources.model_copy(update={"memory_gib": max(resources.memory_gib, predicted_gib)})
    if not resources.gpus or resources.gpu_type or not place.gpu_types:
        return resources
    kinds = sorted(place.gpu_types, key=lambda kind: kind.memory_gib)
    fits = (kind for kind in kinds if 0 < predicted_gib <= kind.memory_gib)
    return resources.model_copy(update={"gpu_type": next(fits, kinds[-1]).name})

"""Runs on a Slurm cluster, as the supervisor sees them."""

import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.executors.base import JobSpec
from engine.executors.follower import RemoteExecutor
from engine.executors.slurm.commands import JobLine, Slurm
from engine.executors.slurm.fetch import Fetch
from engine.executors.slurm.job import SlurmJob
from engine.executors.slurm.place import ClusterPlace, read_place
from engine.executors.slurm.record import JobResources, SlurmRecord
from engine.paths import LoratoryHome
from engine.runs.provenance import read_provenance
from engine.runs.run import Run

_SUBMITTING_SECONDS = 5.0  # of one look, however many runs are to be submitted
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
    looks_at_all = True

    def __init__(
        self, home: LoratoryHome, place: Callable[[], ClusterPlace] | None = None, slurm: Slurm | None = None
    ) -> None:
        super().__init__()
        self._place = place or (lambda: read_place(home))
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
        record = SlurmRecord(attempt=spec.attempt, resources=resources, warning_seconds=warning_seconds)
        return self.follow(self._job(spec.run, record.save(spec.run.folder), place, spec.config))

    def find(self, run: Run, attempt: int) -> SlurmJob | None:
        record = SlurmRecord.of_attempt(run.folder, attempt)
        if record is None:
            return None
        try:
            place, config = self._place(), run.folder.read_config()
        except EngineError as error:  # a mistake in cluster.yaml does not affect running jobs
            _log.error("%s: %s", run.id, error)
            place, config = ClusterPlace(), None
        if record.is_over and record.job_id and not record.end_state:  # its worker went on after it was given up
            record = record.model_copy(update={"is_over": False}).save(run.folder)
        return self._job(run, record, place, config)

    def _job(self, run: Run, record: SlurmRecord, place: ClusterPlace, config: RunConfig | None) -> SlurmJob:
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
        # By each word of a job's comment; one of the words is the job's number.
        own = defaultdict[str, list[JobLine]](list)
        for line in queue:
            for word in line.comment.split():
                own[word].append(line)
        # A submission takes a second or more: those who wait for a cancel or an end come first.
        jobs.sort(key=lambda job: (not job.wants_cancel, not job.record.job_id))
        began = time.monotonic()
        for job in jobs:
            if not job.record.job_id and time.monotonic() - began > _SUBMITTING_SECONDS:
                job.hurry()
                return
            self.try_step(job, partial(job.step, own.get(job.record.number, [])))


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

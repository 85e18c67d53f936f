"""Runs on Hugging Face Jobs, as the supervisor sees them."""

from engine.executors.base import JobSpec
from engine.executors.follower import RemoteExecutor
from engine.executors.huggingface_jobs.flavors import DEFAULT_LIMIT_HOURS
from engine.executors.huggingface_jobs.job import HubJob
from engine.executors.huggingface_jobs.login import LoginOf, logins_of
from engine.executors.huggingface_jobs.record import JobRecord, JobRequest
from engine.paths import LoratoryHome
from engine.runs.run import Run


class JobsExecutor(RemoteExecutor[HubJob]):
    """Submits jobs to Hugging Face, and follows those of each person in a separate thread, so people do not wait for others.

    Args:
        login_of: Returns a person's login at Hugging Face; a lab without it has none.
        look_seconds: Between two looks at a job.
    """

    name = "jobs"
    title = "Hugging Face"
    advice_if_lost = "See its page."
    close_seconds = 10.0

    def __init__(self, home: LoratoryHome, login_of: LoginOf | None = None, look_seconds: float = 4.0) -> None:
        super().__init__()
        self._home = home
        self._look_seconds = look_seconds
        self._login_of = login_of or logins_of(home)

    def submit(self, spec: JobSpec) -> HubJob:
        """Start to upload the run; raises StorageError if the disk is full."""
        jobs, request, before = spec.config.jobs, JobRequest.read(spec.run.folder), JobRecord.read(spec.run.folder)
        record = JobRecord(
            attempt=spec.attempt,
            namespace=jobs.namespace,
            flavor=request.flavor or jobs.flavor,
            limit_hours=request.limit_hours or jobs.limit_hours or DEFAULT_LIMIT_HOURS,
            earlier_usd=before.cost_usd if before is not None else 0.0,
        )
        return self.follow(self._job(spec.run, record.save(spec.run.folder)))

    def find(self, run: Run, attempt: int) -> HubJob | None:
        record = JobRecord.of_attempt(run.folder, attempt)
        return self._job(run, record) if record is not None else None

    def _job(self, run: Run, record: JobRecord) -> HubJob:
        return HubJob(run, record, self._home, self._login_of, self._look_seconds)

    def thread_of(self, run: Run) -> str:
        return run.owner

    def look(self, jobs: list[HubJob]) -> None:
        for job in jobs:
            self.try_step(job, job.step)

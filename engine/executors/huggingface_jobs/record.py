"""`job.json`: the record of a run's job at Hugging Face, which survives restarts of the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel

from engine.config.load import config_from_mapping
from engine.errors import RunError
from engine.executors.follower import SavedJob
from engine.executors.huggingface_jobs.layout import BUCKET_NAME
from engine.files import read_model, write_atomically
from engine.runs.job import JobEnd
from engine.runs.run import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import JobInfo


class JobRecord(SavedJob, frozen=True):
    """The job of one attempt."""

    account: str = ""  # in whose name it was submitted; another one may not see it
    namespace: str  # the account that pays
    flavor: str  # Hugging Face's name of the hardware
    hardware: str = ""  # what people call it
    price_per_hour_usd: float | None = None  # at the time of the start; None where it was not known
    limit_hours: float  # after which Hugging Face ends the job
    sent_at: float = 0.0  # when it may have been submitted without its id being saved; 0 before
    url: str = ""  # its page
    running_seconds: float = 0.0  # that were paid for so far
    earlier_usd: float | None = 0.0  # what the jobs of earlier attempts cost; None where a price was not known
    is_downloaded: bool = False  # or lost; it is over once nothing of it is left at Hugging Face either

    @property
    def bucket(self) -> str:
        """The bucket that the run travels through."""
        return f"{self.namespace}/{BUCKET_NAME}"

    @property
    def cost_usd(self) -> float | None:
        """The cost of the run so far, from price and time of all its jobs; None if a price is unknown."""
        return self._cost_after(self.running_seconds / 3600)

    @property
    def most_usd(self) -> float | None:
        """The cost of the run if this job reaches its time limit."""
        return self._cost_after(self.limit_hours)

    def _cost_after(self, hours: float) -> float | None:
        if not hours:  # such as of a job that was refused, whose price was never asked
            return self.earlier_usd
        if self.price_per_hour_usd is None or self.earlier_usd is None:
            return None
        return self.earlier_usd + self.price_per_hour_usd * hours

    def end_without_result(self, job: JobInfo | None) -> JobEnd:
        """Return how the job ended, by Hugging Face alone; `job` is None where Hugging Face has forgotten it."""
        if job is None or job.status.stage == "DELETED":
            return JobEnd(cause="Hugging Face does not list the job any more.")
        if job.status.stage == "CANCELED":
            return JobEnd(cause="The job was cancelled at Hugging Face.")
        message = (job.status.message or "").strip().rstrip(".")
        if "time" in message.lower() or self.running_seconds >= self.limit_hours * 3600 * 0.99:
            return JobEnd(
                cause=f"The job reached its time limit of {self.limit_hours:g} h at Hugging Face.",
                advice="Resume it with a higher time limit.",
            )
        if job.status.stage == "COMPLETED":
            return JobEnd(cause="The job ended at Hugging Face, and its results did not arrive.", advice="See its log.")
        return JobEnd(cause=f"The job failed at Hugging Face ({message or 'no reason given'}).", advice="See its log.")


class JobRequest(BaseModel, frozen=True):
    """A person's choice for the next job of a run: other hardware, or another limit."""

    flavor: str = ""
    limit_hours: float | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> Self:
        """Load it; empty where nothing was saved."""
        return read_model(folder.control / "job.json", cls) or cls()

    @classmethod
    def of(cls, folder: RunFolder, flavor: str, limit_hours: float | str | None) -> Self:
        """Return a copy with the given changes.

        Raises:
            RunError: If the run is not one of Hugging Face Jobs.
            ConfigError: If the name cannot be a flavor, or the limit is not a number of hours within its bounds.
        """
        if JobRecord.read(folder) is None:
            raise RunError("This run has no job at Hugging Face.", "Resume it without other hardware and time limit.")
        config_from_mapping(
            {**folder.read_config().model_dump(mode="json"), "jobs": {"flavor": flavor, "limit_hours": limit_hours}}
        )
        before = cls.read(folder)
        return cls.model_validate({"flavor": flavor or before.flavor, "limit_hours": limit_hours or before.limit_hours})

    def save(self, folder: RunFolder) -> None:
        """Save it for the next attempt; raises StorageError if the disk is full."""
        folder.control.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder.control / "job.json", self.model_dump_json())


def write_piece(log: Path, offset: int, data: bytes) -> bool:
    """Insert a piece of the event log; pieces may repeat. Returns False if an earlier one is missing.

    Readers go by complete lines, and what is there already has the same content, so only the rest is added.
    """
    size = log.stat().st_size if log.exists() else 0
    if size < offset:
        return False
    if size < offset + len(data):
        with log.open("ab") as file:
            file.write(data[size - offset :])
    return True

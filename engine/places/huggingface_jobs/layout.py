"""What server, job and companion share: names in the bucket, the order of a job, and its record in `job.json`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import RunError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.places.follower import SavedJob
from loratory.engine.runs.job import JobEnd
from loratory.engine.runs.run import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

BUCKET_NAME = "loratory-runs"
ORDER_VARIABLE = "LORATORY_JOB"  # of the companion: a JobOrder as JSON
LABEL = "loratory"  # of a job: the number of its JobRecord, by which it is found again

# Below the folder of an attempt.
INPUTS = "inputs"
MEDIA = "media"  # below the inputs: images of rows, as the media store has them
EVENTS = "events"
CHECKPOINTS = "checkpoints"
RESULTS = "results"
LOG = "worker.log"
END = "end.json"
STOP_REQUEST = "control/stop"

# In a configuration that is sent, a path below the folder of the inputs.
SENT_PREFIX = "@inputs/"

_SEGMENT = re.compile(rf"{EVENTS}/(\d{{15}})\.jsonl")
_STEP = re.compile(r"step-\d{1,12}")


class JobOrder(BaseModel, frozen=True):
    """The order that a companion gets, without any secret."""

    bucket: str  # as owner/name
    folder: str  # of the attempt, in the bucket
    wheel: str  # of Loratory, in the bucket
    run_id: str
    attempt: int
    limit_seconds: float  # after which Hugging Face ends the job
    poll_seconds: float = 3.0  # between two reads of what the worker wrote


class JobResult(BaseModel, frozen=True):
    """`end.json`: how the worker ended."""

    exit_code: int  # negative for a signal
    reached_limit: bool = False  # whether the companion asked it to stop, because the job's time was nearly over


def attempt_folder(run_id: str, attempt: int) -> str:
    """Return where an attempt's files are in the bucket."""
    return f"runs/{run_id}/{attempt}"


def segment_name(offset: int) -> str:
    """Return the name of a piece of the event log that begins at a byte of it.

    The offset is in the name, so a piece that comes twice, late or in another order does no harm.
    """
    return f"{EVENTS}/{offset:015d}.jsonl"


def segment_offset(name: str) -> int | None:
    """Return where a piece of the event log belongs; None for other files."""
    match = _SEGMENT.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_of(name: str) -> str | None:
    """Return the checkpoint that a file belongs to, such as `step-20`; None for other files."""
    parts = PurePosixPath(name).parts
    is_one = len(parts) > 2 and parts[0] == CHECKPOINTS and _STEP.fullmatch(parts[1]) and is_plain(name)
    return parts[1] if is_one else None


def is_plain(name: str) -> bool:
    """Whether a name from the bucket stays inside the folder that it is joined to."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in parts)


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
    def with_changes(cls, folder: RunFolder, flavor: str, limit_hours: float | str | None) -> Self:
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


def whole_lines(log: Path, offset: int = 0, most_bytes: int = -1) -> bytes:
    """Return the complete lines of an event log from a byte on; empty where there are none."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            data = file.read(most_bytes)
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


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

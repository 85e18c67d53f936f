"""The layout that a job's companion and the follower share: names in the bucket, and the order of a job."""

import re
from pathlib import PurePosixPath

from pydantic import BaseModel

BUCKET_NAME = "loratory-runs"
ORDER_VARIABLE = "LORATORY_JOB"  # of the companion: a JobOrder as JSON
LABEL = "loratory"  # of a job: the number of its JobRecord, by which it is found again

# Below the folder of an attempt.
INPUTS = "inputs"
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
    look_seconds: float = 3.0  # between two looks at what the worker wrote


class JobResult(BaseModel, frozen=True):
    """`end.json`: how the worker ended."""

    exit_code: int  # negative for a signal
    reached_limit: bool = False  # whether the companion asked it to stop, because the job's time was nearly over


def attempt_folder(run_id: str, attempt: int) -> str:
    """Return where an attempt's files are in the bucket."""
    return f"runs/{run_id}/{attempt}"


def segment_name(offset: int) -> str:
    """Return the name of a piece of the event log that begins at a byte of it.

    The place is in the name, so a piece that comes twice, late or in another order does no harm.
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

"""Why one of several processes of a run gave up: its word, left beside the log that the first process alone writes."""

import contextlib
from pathlib import Path

from pydantic import ValidationError

from engine.errors import StorageError
from engine.files import write_atomically
from engine.runs.events import FailedData

_NAME = "failed-process-{}.json"  # counted from 1, as people count


def note_failure(run: Path, rank: int, failed: FailedData) -> None:
    """Leave word of what went wrong in a process that is not the first; where the disk is full, the log has it."""
    with contextlib.suppress(StorageError, OSError):
        write_atomically(run / _NAME.format(rank + 1), failed.model_dump_json())


def noted_failure(run: Path) -> FailedData | None:
    """What the first of them said that failed in this attempt; None where none did."""
    found: list[tuple[float, FailedData]] = []
    for path in run.glob(_NAME.format("*")):
        with contextlib.suppress(OSError, ValidationError):
            found.append((path.stat().st_mtime, FailedData.model_validate_json(path.read_bytes())))
    # A process that loses another one fails too, a moment later.
    return min(found, key=lambda one: one[0])[1] if found else None


def forget_failures(run: Path) -> None:
    """Begin an attempt with none."""
    for path in run.glob(_NAME.format("*")):
        path.unlink(missing_ok=True)

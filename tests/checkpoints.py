"""Looks at the checkpoints of a run as a worker that resumes does: every file is read."""

from pathlib import Path

from engine.runs.checkpoints import Checkpoint, damage, list_checkpoints


def newest_intact(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose every file is as it was written; None where there is none."""
    return next((known for known in reversed(list_checkpoints(folder)) if not damage(known)), None)

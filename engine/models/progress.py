"""How far the making of a model available has come, for whoever waits."""

from collections.abc import Callable
from typing import Literal, NamedTuple

ModelPhase = Literal["waiting", "looking", "downloading", "unpacking", "converting", "verifying", "ready"]


class ModelProgress(NamedTuple):
    """One moment of it. `message` says it in words; byte counts are there where they are known."""

    phase: ModelPhase
    message: str
    done_bytes: int | None = None
    total_bytes: int | None = None


OnModelProgress = Callable[[ModelProgress], None]


def nobody_listens(_: ModelProgress) -> None:
    """Stands in where nobody asked for progress."""

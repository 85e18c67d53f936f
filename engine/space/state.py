"""What a Space does, as the Hub reports it, in words."""

from collections.abc import Mapping
from enum import Enum
from typing import Literal, NamedTuple


class Stage(NamedTuple):
    """What a state of a Space means."""

    words: str  # for people, after "The Space"
    is_end: bool = True  # whether it stays like that until something is done
    has_failed: bool = False  # whether it does not run, and should
    log: Literal["build", "run"] | None = None  # that explains it


# Source: huggingface_hub.SpaceStage; SLEEPING is not in it, but is what the Hub reports.
STAGES: Mapping[str, Stage] = {
    "RUNNING": Stage("is running."),
    "SLEEPING": Stage("is asleep and wakes up with the next visit."),
    "PAUSED": Stage("is paused and costs nothing; restart it in its settings."),
    "STOPPED": Stage("is stopped; restart it in its settings.", has_failed=True, log="run"),
    "BUILDING": Stage("is building its image.", is_end=False),
    "RUNNING_BUILDING": Stage("is running, and builds its next image.", is_end=False),
    "APP_STARTING": Stage("is starting.", is_end=False),
    "RUNNING_APP_STARTING": Stage("is running, and starts its next version.", is_end=False),
    "NO_APP_FILE": Stage("has no files yet; `loratory space update` sends them.", has_failed=True),
    "CONFIG_ERROR": Stage("has settings in README.md that the Hub rejects.", has_failed=True),
    "BUILD_ERROR": Stage("could not build its image.", has_failed=True, log="build"),
    "RUNTIME_ERROR": Stage("ended, or did not answer in time.", has_failed=True, log="run"),
    "DELETING": Stage("is being deleted."),
}


def stage_of(name: str | Enum) -> Stage:
    """Return what a state means; one that is not known counts as failed."""
    text = str(name.value if isinstance(name, Enum) else name)
    unknown = f"is in the state {text[:40]}, which this version does not know."
    return STAGES.get(text) or Stage(unknown, has_failed=True)


class Status(NamedTuple):
    """A Space as the Hub reports it."""

    name: str  # as owner/name
    stage: str  # as the Hub names it
    words: str  # the same for people
    hardware: str | None  # that it has; None before the first build
    requested_hardware: str | None  # that it is to have
    price_per_hour_usd: float | None  # while it runs; None where the Hub lists none
    sleep_seconds: int | None  # without a visit, until it sleeps; None if it never does
    address: str  # of the app itself, where people sign in
    page: str  # of the Space on the Hub
    bucket: str | None = None  # to which runs are mirrored
    has_token: bool = False  # whether it may write there
    admitted: str | None = None  # as they were listed
    log: tuple[str, ...] = ()  # its last lines, where they explain the stage

"""What a Space does, as the Hub reports it, in words."""

from collections.abc import Mapping
from enum import Enum
from typing import Literal, NamedTuple


class Stage(NamedTuple):
    """What a state of a Space means.

    Attributes:
        words: For people, after "The Space".
        is_end: Whether it stays like that until something is done.
        has_failed: Whether it does not run, and should.
        log: That explains it.
    """

    words: str
    is_end: bool = True
    has_failed: bool = False
    log: Literal["build", "run"] | None = None


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
    """A Space as the Hub reports it.

    Attributes:
        name: As owner/name.
        stage: As the Hub names it.
        words: The same for people.
        hardware: That it has; None before the first build.
        requested_hardware: That it is to have.
        price_per_hour_usd: While it runs; None where the Hub lists none.
        sleep_seconds: Without a visit, until it sleeps; None if it never does.
        address: Of the app itself, where people sign in.
        page: Of the Space on the Hub.
        bucket: To which runs are mirrored.
        has_token: Whether it may write there.
        admitted: As they were listed.
        log: Its last lines, where they explain the stage.
    """

    name: str
    stage: str
    words: str
    hardware: str | None
    requested_hardware: str | None
    price_per_hour_usd: float | None
    sleep_seconds: int | None
    address: str
    page: str
    bucket: str | None = None
    has_token: bool = False
    admitted: str | None = None
    log: tuple[str, ...] = ()

"""Why a run is in its state: a value for the program, with the words that people read."""

from typing import Literal, NamedTuple

StoppedBy = Literal["request", "cancel", "sigterm", "sigint"]  # what made a worker save and end

WaitReason = Literal["memory", "device_in_use", "device_missing", "earlier_run", "resumes", "executor_queue"]
LiveReason = Literal["suspended", "stop_requested", "cancel_requested"]
_QueueEnd = Literal["left_the_queue", "not_started"]
_ReportedEnd = Literal["finished", "stopped_on_request", "cancelled", "sigterm", "sigint", "worker_failed"]
_ObservedEnd = Literal[
    "hung",
    "killed",
    "crashed",
    "signal",
    "exit_code",
    "out_of_memory",
    "machine_restarted",
    "host_lost",
    "ended_by_executor",
    "unknown",
]
EndReason = Literal[_QueueEnd, _ReportedEnd, _ObservedEnd]
Reason = Literal[WaitReason, LiveReason, EndReason]

# The SIGTERM of a shutdown or a scheduler, whether the worker could save or not, or a restart.
ENDED_BY_THE_SYSTEM: frozenset[Reason] = frozenset({"sigterm", "machine_restarted"})

STOP_REASONS: dict[StoppedBy, EndReason] = {
    "request": "stopped_on_request",
    "cancel": "cancelled",
    "sigterm": "sigterm",
    "sigint": "sigint",
}


class Why(NamedTuple):
    """Why a run is in its state."""

    reason: Reason | None
    cause: str  # what people read
    advice: str = ""


def reason_of_old_cause(cause: str) -> Reason | None:
    """Return the reason of a state that an older version saved in words alone; None where no program needs it."""
    if cause.startswith("Waits for memory"):
        return "memory"
    if cause.startswith("The machine was restarted"):
        return "machine_restarted"
    return "sigterm" if "(SIGTERM)" in cause else None


def stopped_by_of_old_words(message: str) -> StoppedBy:
    """Return what made a worker stop whose version reported it in words alone."""
    if message.startswith("The system asked to end"):
        return "sigterm" if "(SIGTERM)" in message else "sigint"
    return "cancel" if message.startswith("Cancelled") else "request"

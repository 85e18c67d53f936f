"""Why a worker is gone: from evidence to a final state with its reason, cause and advice."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from engine.processes.limits import DEADLINE_SIGNAL
from engine.runs.history.events import FailedData
from engine.runs.reasons import STOP_REASONS, EndReason, StoppedBy
from engine.runs.run import State

EndedByUs = Literal["cancel", "hung", "suspended"]


class Diagnosis(NamedTuple):
    """How an attempt ended, and why."""

    state: State
    reason: EndReason
    cause: str  # what people read
    advice: str


@dataclass(frozen=True)
class Evidence:
    """What is known about a worker that is no longer there."""

    finished_phase: Literal["finished", "stopped"] | None = None  # its own last word, of this attempt
    last_words: str = ""  # what it said along with it
    stopped_by: StoppedBy | None = None  # as well
    failed: FailedData | None = None  # of this attempt
    exit_code: int | None = None  # negative for a signal; None where we were not its parent and cannot know
    out_of_memory_kills: int = 0  # by the kernel, on this machine, since the attempt began
    rebooted: bool = False
    lost_host: str | None = None  # of a worker that ran on another machine and gives no sign any more
    executor_cause: str = ""  # what the executor says about it, such as a time limit
    executor_advice: str = ""
    cancel_requested: bool = False
    ended_by_us: EndedByUs | None = None
    silent_seconds: float = 0.0  # before we ended it
    limit_seconds: float = 0.0  # that this silence exceeded
    last_step: int = 0
    total_steps: int | None = None
    has_adapter: bool = False
    resumable_step: int | None = None


def diagnose(evidence: Evidence) -> Diagnosis:
    """Classify the end of an attempt.

    What the worker reported comes first; then what we did, and what the executor and the system report.
    """
    step = evidence.last_step
    if evidence.finished_phase == "finished":
        ended_early = evidence.total_steps is not None and step < evidence.total_steps
        return Diagnosis("completed", "finished", evidence.last_words if ended_early else "", "")
    if evidence.finished_phase == "stopped":
        if evidence.cancel_requested:
            return _cancelled(evidence)
        what = evidence.last_words or f"Stopped on request after step {step}."
        return Diagnosis("stopped", STOP_REASONS[evidence.stopped_by or "request"], what, _what_can_be_used(evidence))
    if evidence.failed is not None:
        return Diagnosis("failed", "worker_failed", evidence.failed.what, evidence.failed.fix)
    if _was_cancelled(evidence):
        return _cancelled(evidence)
    if evidence.ended_by_us is not None:
        how = "was suspended and" if evidence.ended_by_us == "suspended" else "hung: it"
        return Diagnosis(
            "failed",
            "hung",
            f"The worker {how} made no progress for {evidence.silent_seconds:.0f} seconds after step {step} "
            f"(the limit is {evidence.limit_seconds:.0f}), and was ended.",
            f"{_resume(evidence)} If it happens again, the log shows where it hangs.",
        )
    if evidence.executor_cause:
        advice = f"{evidence.executor_advice} {_resume(evidence)}".lstrip()
        return Diagnosis("interrupted", "ended_by_executor", evidence.executor_cause, advice)
    if evidence.rebooted:
        return Diagnosis(
            "interrupted", "machine_restarted", f"The machine was restarted after step {step}.", _resume(evidence)
        )
    if evidence.lost_host is not None:
        return Diagnosis(
            "interrupted",
            "host_lost",
            f"The worker on {evidence.lost_host} gave no sign for {evidence.silent_seconds:.0f} seconds after step {step}.",
            f"Make sure that it no longer runs there. {_resume(evidence)}",
        )
    if evidence.exit_code is None:
        if evidence.out_of_memory_kills:
            return _out_of_memory(evidence)
        return Diagnosis(
            "interrupted",
            "unknown",
            f"The worker ended after step {step} while no supervisor watched it; the reason is not known.",
            _resume(evidence),
        )
    return _by_exit_code(evidence, evidence.exit_code)


def _was_cancelled(evidence: Evidence) -> bool:
    """Whether it ended as a request asked, by our hand or another's: a former supervisor may have killed it."""
    if evidence.ended_by_us is not None:
        return evidence.ended_by_us == "cancel"
    was_killed_or_unseen = evidence.exit_code is None or _signal_name(-evidence.exit_code) == "SIGKILL"
    return evidence.cancel_requested and was_killed_or_unseen


def _by_exit_code(evidence: Evidence, code: int) -> Diagnosis:
    step = evidence.last_step
    if code == 0:
        return Diagnosis(
            "failed",
            "exit_code",
            f"The worker ended after step {step} without reporting that it had finished.",
            f"{_resume(evidence)} The log may show why.",
        )
    if code > 0:
        when = f"after step {step}" if step else "before the first step"
        return Diagnosis(
            "failed",
            "exit_code",
            f"The worker ended with exit code {code} {when} and gave no reason.",
            f"The end of its log says more. {_resume(evidence)}",
        )
    name = _signal_name(-code)
    if name == "SIGKILL":
        if evidence.out_of_memory_kills:
            return _out_of_memory(evidence)
        return Diagnosis(
            "failed",
            "killed",
            f"The worker was killed from outside (SIGKILL) after step {step}.",
            f"{_resume(evidence)} If you did not kill it, memory may have run out: choose a smaller batch.",
        )
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return Diagnosis(
            "interrupted",
            "sigterm" if name == "SIGTERM" else "signal",
            f"The worker was asked to end from outside ({name}) after step {step} and could not save.",
            _resume(evidence),
        )
    if -code == DEADLINE_SIGNAL:
        return Diagnosis(
            "failed",
            "signal",
            "Reading the model's tokenizer, or rendering a batch of rows, took more computing time than it may.",
            "Use the original tokenizer and chat template of the model, or split very long rows, and start a new run.",
        )
    if name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT", "SIGFPE"):
        return Diagnosis(
            "failed",
            "crashed",
            f"The worker crashed in native code ({name}) after step {step}.",
            f"The end of its log says where; an update of torch or of the GPU driver often helps. {_resume(evidence)}",
        )
    return Diagnosis("failed", "signal", f"The worker was ended by {name} after step {step}.", _resume(evidence))


def _out_of_memory(evidence: Evidence) -> Diagnosis:
    return Diagnosis(
        "failed",
        "out_of_memory",
        f"The machine ran out of memory after step {evidence.last_step}, and the system killed the worker.",
        "Choose a smaller batch, shorter rows or gradient checkpointing; the memory estimate shows what helps most.",
    )


def _cancelled(evidence: Evidence) -> Diagnosis:
    return Diagnosis("stopped", "cancelled", f"Cancelled after step {evidence.last_step}.", _what_can_be_used(evidence))


def _resume(evidence: Evidence) -> str:
    if evidence.resumable_step is not None:
        return f"It can be resumed from step {evidence.resumable_step}."
    return "No checkpoint was saved yet; resuming starts over."


def _what_can_be_used(evidence: Evidence) -> str:
    if evidence.has_adapter and not evidence.cancel_requested:
        return "The adapter so far is saved and can be used, or resumed."
    if evidence.resumable_step is not None:
        return f"The checkpoint of step {evidence.resumable_step} can be used, or resumed."
    return "Nothing was saved yet."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def out_of_memory_kills() -> int | None:
    """Return how often the kernel has killed for lack of memory since boot; None where it does not count (Linux does)."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)

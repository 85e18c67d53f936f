"""Diagnose why a worker ended: from evidence to a final state with reason, cause and advice."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from loratory.engine.processes.limits import DEADLINE_SIGNAL
from loratory.engine.runs.activity import Silence
from loratory.engine.runs.disk import FREE_SPACE
from loratory.engine.runs.history.events import FailedData, StatusData
from loratory.engine.runs.job import EXIT_REFUSED, ExecutorVerdict, JobEnd
from loratory.engine.runs.run import STOP_REASONS, EndReason, State

EndedByUs = Literal["cancel", "hung", "suspended"]


class Diagnosis(NamedTuple):
    """How an attempt ended, and why."""

    state: State
    reason: EndReason
    cause: str  # what people read
    advice: str


@dataclass(frozen=True)
class Evidence:
    """The facts about a worker that has ended."""

    end: JobEnd
    silence: Silence  # before we ended it
    status: StatusData | None = None  # the last phase that it reported in this attempt
    failed: FailedData | None = None  # of this attempt
    out_of_memory_kills: int = 0  # by the kernel, on this machine, since the attempt began
    cancel_requested: bool = False
    time_limit_hours: float | None = None  # where it was asked to stop for it
    ended_by_us: EndedByUs | None = None
    last_step: int = 0
    total_steps: int | None = None
    has_adapter: bool = False
    resumable_step: int | None = None


def diagnose(evidence: Evidence) -> Diagnosis:
    """Classify the end of an attempt.

    What the worker reported comes first; then what we did, what the executor reports, and what the system shows.
    """
    return _by_report(evidence) or _by_us(evidence) or _by_executor(evidence) or _by_system(evidence)


def _by_report(evidence: Evidence) -> Diagnosis | None:
    status, failed = evidence.status, evidence.failed
    if status is not None and status.phase == "finished":
        ended_early = evidence.total_steps is not None and evidence.last_step < evidence.total_steps
        return Diagnosis("completed", "finished", status.message if ended_early else "", "")
    if status is not None and status.phase == "stopped":
        return _by_reported_stop(status, evidence)
    # When another process of the run is killed, or its machine ends, a worker sees an unexpected error at most.
    if failed is not None and (evidence.end.verdict is None or failed.cause != "unexpected"):
        return Diagnosis("failed", "worker_failed", failed.what, failed.fix)
    return None


def _by_reported_stop(status: StatusData, evidence: Evidence) -> Diagnosis:
    verdict, stopped_by, advice = evidence.end.verdict, status.stopped_by or "request", _what_can_be_used(evidence)
    if evidence.cancel_requested:
        return _diagnose_cancel(evidence)
    if verdict is not None and stopped_by == "sigterm":  # which the executor sent
        return _by_verdict(verdict, evidence, saved=True)
    if evidence.time_limit_hours is not None and stopped_by == "request":
        what = f"{time_limit_words(evidence.time_limit_hours)} Stopped after step {evidence.last_step}."
        return Diagnosis("stopped", "time_limit", what, f"{advice} A resumed run waits in the queue.")
    reason, what = STOP_REASONS[stopped_by], status.message or f"Stopped on request after step {evidence.last_step}."
    return Diagnosis("stopped", reason, what, f"{FREE_SPACE} {advice}" if reason == "disk_limit" else advice)


def _by_us(evidence: Evidence) -> Diagnosis | None:
    if _was_cancelled(evidence):
        return _diagnose_cancel(evidence)
    if evidence.ended_by_us is None:
        return None
    how = "was suspended and" if evidence.ended_by_us == "suspended" else "hung: it"
    what = (
        f"The worker {how} made no progress for {evidence.silence.seconds:.0f} seconds after step {evidence.last_step} "
        f"(the limit is {evidence.silence.limit_seconds:.0f}), and was ended."
    )
    return Diagnosis("failed", "hung", what, f"{_resume(evidence)} If it happens again, the log shows where it hangs.")


def _by_executor(evidence: Evidence) -> Diagnosis | None:
    end, resume = evidence.end, _resume(evidence)
    if end.verdict is not None:
        return _by_verdict(end.verdict, evidence)
    if end.cause:
        return Diagnosis("interrupted", "ended_by_executor", end.cause, f"{end.advice} {resume}".lstrip())
    if end.lost_host is not None:
        silence = f"{evidence.silence.seconds:.0f} seconds after step {evidence.last_step}"
        what = f"The worker on {end.lost_host} gave no sign for {silence}."
        return Diagnosis("interrupted", "host_lost", what, f"Make sure that it no longer runs there. {resume}")
    return None


def _by_system(evidence: Evidence) -> Diagnosis:
    end, step, resume = evidence.end, evidence.last_step, _resume(evidence)
    if end.machine_restarted:
        return Diagnosis("interrupted", "machine_restarted", f"The machine was restarted after step {step}.", resume)
    if evidence.out_of_memory_kills and (end.exit_code is None or _signal_name(-end.exit_code) == "SIGKILL"):
        return Diagnosis(
            "failed",
            "out_of_memory",
            f"The machine ran out of memory after step {step}, and the system killed the worker.",
            "Choose a smaller batch, shorter rows or gradient checkpointing; the memory estimate shows what helps most.",
        )
    if end.exit_code is None:
        what = f"The worker ended after step {step} while no supervisor was running; the reason is unknown."
        return Diagnosis("interrupted", "unknown", what, resume)
    return _by_exit_code(end.exit_code, step, resume)


def time_limit_words(hours: float) -> str:
    """Return the sentence about a limit that was reached."""
    limit = f"{hours:g} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
    return f"It reached the maximum run time of this lab ({limit})."


def _was_cancelled(evidence: Evidence) -> bool:
    """Whether it ended as requested; a previous supervisor may have killed it."""
    if evidence.ended_by_us is not None:
        return evidence.ended_by_us == "cancel"
    code = evidence.end.exit_code
    ended_so = evidence.end.verdict == "cancelled" or code is None or _signal_name(-code) == "SIGKILL"
    return evidence.cancel_requested and ended_so


# By the executor's reason; its own sentence, which names job and host, comes before ours.
_ENDS_BY_VERDICT: dict[ExecutorVerdict, Diagnosis] = {
    "out_of_memory": Diagnosis(
        "failed",
        "out_of_memory",
        "The job used more memory than it had asked for.",
        "Choose a smaller batch, shorter rows or gradient checkpointing, or ask for more memory. {resume}",
    ),
    "time_limit": Diagnosis("interrupted", "job_time_limit", "The job reached its time limit.", "{resume}"),
    "node_failed": Diagnosis("interrupted", "node_failed", "The machine of the job failed.", "{resume}"),
    "preempted": Diagnosis("interrupted", "preempted", "The job was preempted by another one.", "{resume}"),
    "cancelled": Diagnosis("stopped", "job_cancelled", "The job was cancelled there.", "{resume}"),
}


def _by_verdict(verdict: ExecutorVerdict, evidence: Evidence, *, saved: bool = False) -> Diagnosis:
    state, reason, cause, advice = _ENDS_BY_VERDICT[verdict]
    step = evidence.last_step
    when = f"It saved after step {step}." if saved else f"It had reached step {step}."
    resume = _what_can_be_used(evidence) if saved else _resume(evidence)
    advice = " ".join(filter(None, (evidence.end.advice, advice.format(resume=resume))))
    return Diagnosis("stopped" if saved else state, reason, f"{evidence.end.cause or cause} {when}", advice)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_ENDED_FROM_OUTSIDE = "The worker was terminated from outside ({name}) after step {step} and could not save."
_CRASH = Diagnosis(
    "failed",
    "crashed",
    "The worker crashed in native code ({name}) after step {step}.",
    "The end of its log shows where; an update of torch or of the GPU driver often helps. {resume}",
)
_ENDS_BY_SIGNAL = {
    "SIGKILL": Diagnosis(
        "failed",
        "killed",
        "The worker was killed from outside (SIGKILL) after step {step}.",
        "{resume} If you did not kill it, memory may have run out: choose a smaller batch.",
    ),
    "SIGTERM": Diagnosis("interrupted", "sigterm", _ENDED_FROM_OUTSIDE, "{resume}"),
    "SIGINT": Diagnosis("interrupted", "signal", _ENDED_FROM_OUTSIDE, "{resume}"),
    "SIGHUP": Diagnosis("interrupted", "signal", _ENDED_FROM_OUTSIDE, "{resume}"),
    _signal_name(DEADLINE_SIGNAL): Diagnosis(
        "failed",
        "signal",
        "Reading the model's tokenizer, or rendering a batch of rows, took more computing time than it may.",
        "Use the original tokenizer and chat template of the model, or split very long rows, and start a new run.",
    ),
    **dict.fromkeys(("SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT", "SIGFPE"), _CRASH),
}
_OTHER_SIGNAL = Diagnosis("failed", "signal", "The worker was ended by {name} after step {step}.", "{resume}")


def _by_exit_code(code: int, step: int, resume: str) -> Diagnosis:
    if code == 0:
        what = f"The worker ended after step {step} without reporting that it had finished."
        return Diagnosis("failed", "exit_code", what, f"{resume} The log may show why.")
    if code > 0:
        when = f"after step {step}" if step else "before the first step"
        what = f"The worker ended with exit code {code} {when}"
        if code == EXIT_REFUSED:
            what = f"{what} as another worker had this run, or its attempt was given up."
            return Diagnosis("failed", "exit_code", what, f"The end of its log names which. {resume}")
        return Diagnosis("failed", "exit_code", f"{what} and gave no reason.", f"See the end of its log. {resume}")
    name = _signal_name(-code)
    state, reason, cause, advice = _ENDS_BY_SIGNAL.get(name, _OTHER_SIGNAL)
    values = {"name": name, "step": step, "resume": resume}
    return Diagnosis(state, reason, cause.format(**values), advice.format(**values))


def _diagnose_cancel(evidence: Evidence) -> Diagnosis:
    advice, host = _what_can_be_used(evidence), evidence.end.lost_host
    if host is not None and (evidence.status is None or evidence.status.phase != "stopped"):
        advice = f"The worker on {host} did not answer: make sure that it no longer runs there. {advice}"
    return Diagnosis("stopped", "cancelled", f"Cancelled after step {evidence.last_step}.", advice)


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


def out_of_memory_kills() -> int | None:
    """Return how often the kernel has killed for lack of memory since boot; None where it does not count (Linux does)."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)

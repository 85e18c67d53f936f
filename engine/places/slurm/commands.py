"""Slurm's own commands: arguments as lists, a time limit on each, and only formats that are made for programs."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from loratory.engine.errors import ClusterError, ClusterUnreachableError, explain_os_errors, shorten
from loratory.engine.processes.spawn import environment_for

FIELD_END = "\x1f"  # ends each field where a format can be chosen; no value has it
_FIELDS = ("JobID", "State", "Reason", "Comment", "NodeList", "StartTime", "EndTime", "TimeLimit", "exit_code")
# The same of `sacct` and of `scontrol show job`.
_RECORDED = ("JobIDRaw", "State", "Reason", "Comment", "NodeList", "Start", "End", "Timelimit", "ExitCode")
_SHOWN = ("JobId", "JobState", "Reason", "Comment", "NodeList", "StartTime", "EndTime", "TimeLimit", "ExitCode")
_FORGOTTEN = "invalid job id"
# What Slurm's commands print where the controller, its network or its authentication fails, and nothing is decided.
_NO_ANSWER = (
    "unable to contact slurm controller", "socket timed out", "connection refused", "communication connection failure",
    "zero bytes were transmitted", "temporarily unable to accept job", "backup controller", "standby mode",
    "connection timed out", "connection reset", "munge", "unable to resolve", "unexpected missing socket",
    "could not establish a configuration source", "protocol authentication error", "message receive failure",
    "unable to establish controller machine", "transport endpoint", "no route to host", "slurm_load_jobs error",
)  # fmt: skip
_IMPOSSIBLE = "node configuration is not available"
_START = re.compile(r"to start at (\d+)")
# States of a node as `sinfo` prints them, and the flags of nodes that are planned for a waiting job (`-`), empty a job (`+`)
# or are switched by power saving. Source: sinfo(1), "NODE STATE CODES".
_TAKES_JOBS = frozenset({"idle", "mixed", "allocated", "completing", "planned"})
_HARMLESS_FLAGS = "-+~#!%"
_HAS_ENDED = ("already completing or completed", _FORGOTTEN, "invalid job/step")


class NeverStartsError(ClusterError):
    """No node of the cluster can run the job, even when all are free."""

    def __init__(self) -> None:
        super().__init__(
            "No node of the cluster has what this run asks for.",
            "Ask for less in the run's settings (GPUs, nodes, RAM), or correct cluster.yaml.",
        )


class JobLine(NamedTuple):
    """A job as `squeue` shows it."""

    id: str
    state: str  # such as PENDING, RUNNING, NODE_FAIL
    reason: str  # why it is in this state, in Slurm's words
    comment: str
    nodes: str = ""
    start_time: float | None = None  # seconds since the epoch; of a waiting job when it is expected to
    end_time: float | None = None
    limit_seconds: float | None = None  # None where it has none
    exit_code: int | None = None  # of the job's command; negative for a signal


class Slurm:
    """Asks the Slurm of this machine.

    Each call raises `ClusterUnreachableError` if Slurm does not answer, which decides nothing, and `ClusterError` if it
    refused.

    Args:
        limit_seconds: Time limit of one command: with the controller down, some wait for minutes.
    """

    def __init__(self, limit_seconds: float = 20.0) -> None:
        self.limit_seconds = limit_seconds

    def submit(self, script: str, options: Sequence[str]) -> str:
        """Submit a job and return its id."""
        answer = self.run_command("sbatch", *options, stdin=script)
        job_id = answer.strip().partition(";")[0]
        if not job_id.isdecimal():
            raise _unreadable("sbatch", answer, "a job id")
        return job_id

    def expected_start(self, script: str, options: Sequence[str]) -> float | None:
        """Return when a job would start, in seconds since the epoch; None if Slurm makes no promise. It is not submitted.

        Raises:
            NeverStartsError: If no node of the cluster ever has what the job asks for.
        """
        try:
            answer = self.run_command("sbatch", "--test-only", *options, stdin=script, with_stderr=True)
        except ClusterUnreachableError:
            raise
        except ClusterError as error:
            if _IMPOSSIBLE not in error.what:
                raise
            # The answer is the same for a node that is down, drained, or not seen since the controller's restart.
            partition = [option for option in options if option.startswith("--partition=")]
            if all(map(takes_jobs, self.run_command("sinfo", "--noheader", *partition, "--format=%T").split())):
                raise NeverStartsError() from error
            return None
        match = _START.search(answer)
        return float(match[1]) if match else None

    def require_possible(self, script: str, options: Sequence[str]) -> None:
        """Raise NeverStartsError if no node ever has what a job asks for; Slurm accepts a held job anyway."""
        try:
            self.expected_start(script, options)
        except (ClusterUnreachableError, NeverStartsError):
            raise
        except ClusterError:
            pass  # submitting it shows Slurm's error

    def queue(self) -> list[JobLine]:
        """Return every job of this account that Slurm still knows, ended ones included for some minutes."""
        form = ",".join(f"{name}:{FIELD_END}" for name in _FIELDS)
        answer = self.run_command("squeue", "--noheader", "--me", "--states=all", f"--Format={form}")
        jobs = [_job_line(line) for line in answer.splitlines() if line.count(FIELD_END) == len(_FIELDS)]
        if answer.strip() and not jobs:
            raise _unreadable("squeue", answer, "jobs")
        return jobs

    def find(self, job_id: str) -> JobLine | None:
        """Return a job as the controller shows it, or once it has ended, as accounting recorded it; None if neither has it."""
        try:
            answer = self.run_command("scontrol", "--oneliner", "show", "job", job_id)
        except ClusterError as error:
            if _FORGOTTEN not in error.what.lower():
                raise
            return self._find_recorded(job_id)
        values = [re.search(rf"(?:^| ){name}=(.*?)(?= [A-Z][\w/:]*=|$)", answer, re.MULTILINE) for name in _SHOWN]
        if values[1] is None:
            raise _unreadable("scontrol", answer, "a job")
        return _job_line(FIELD_END.join(value[1] if value is not None else "" for value in values))

    def _find_recorded(self, job_id: str) -> JobLine | None:
        form = ("--parsable2", f"--delimiter={FIELD_END}", f"--format={','.join(_RECORDED)}")
        try:
            answer = self.run_command("sacct", "--noheader", "--allocations", *form, f"--jobs={job_id}")
        except ClusterError:  # many clusters keep no accounts
            return None
        lines = [_job_line(line) for line in answer.splitlines() if line.count(FIELD_END) == len(_RECORDED) - 1]
        # Where an end was never recorded, the database has it running for ever.
        return next((line for line in reversed(lines) if line.end_time is not None), None)

    def release(self, job_id: str) -> None:
        """Release a held job."""
        self.run_command("scontrol", "release", job_id)

    def cancel(self, job_id: str) -> None:
        """End a job like `scancel`: its steps may save, for Slurm's KillWait."""
        self._scancel(job_id)

    def kill(self, job_id: str) -> None:
        """End a job at once. Slurm treats SIGKILL for a whole job as `cancel`, so this kills its step."""
        self._scancel("--signal=KILL", f"{job_id}.0")
        self._scancel(job_id)

    def _scancel(self, *arguments: str) -> None:
        try:
            self.run_command("scancel", *arguments)
        except ClusterUnreachableError:
            raise
        except ClusterError as error:  # it has ended
            if not any(sign in error.what.lower() for sign in _HAS_ENDED):
                raise

    def run_command(self, *argv: str, stdin: str = "", with_stderr: bool = False) -> str:
        """Return what a command prints on stdout, or also on stderr where `with_stderr`."""
        with explain_os_errors(
            f"{argv[0]} cannot be started here", "Install Slurm's commands on this machine.", ClusterUnreachableError
        ):
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if with_stderr else subprocess.PIPE,
                # Without secrets and the person's own Slurm options.
                env={**environment_for(()), **which_slurm(), "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"},
                start_new_session=True,
                text=True,
                errors="replace",
            )
        try:
            out, err = process.communicate(stdin, timeout=self.limit_seconds)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise _no_answer(f"{argv[0]} took longer than {self.limit_seconds:g} s") from error
        if process.returncode == 0:
            return out
        message = " ".join((err or out or "").split()).removeprefix(f"{argv[0]}: ")
        if any(sign in message.lower() for sign in _NO_ANSWER):
            raise _no_answer(shorten(message, 200))
        raise ClusterError(
            f"Slurm refused {argv[0]}: {shorten(message, 300)}.", "Correct cluster.yaml, or ask its admin."
        )


def takes_jobs(state: str) -> bool:
    """Return whether jobs start on a node in this state, now or when the present ones have ended."""
    return state.strip().rstrip(_HARMLESS_FLAGS) in _TAKES_JOBS


def seconds_of(limit: str) -> float | None:
    """Return a time limit as Slurm prints it, `days-hours:minutes:seconds` without leading parts; None for unlimited."""
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in (*parts, *([days] if dash else []))):
        return None
    if dash:
        parts += ["0"] * (3 - len(parts))
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return float(seconds + int(days or 0) * 86_400)


def exit_code_of(text: str) -> int | None:
    """Return an exit code as Slurm prints it, `code:signal`; a shell or srun reports a task's signal as 128 more."""
    code, _, number = text.partition(":")
    if not (code.isdecimal() and number.isdecimal()):
        return None
    if int(number):
        return -int(number)
    return 128 - int(code) if 128 < int(code) <= 192 else int(code)


def _job_line(line: str) -> JobLine:
    job_id, state, reason, comment, nodes, start, end, limit, code = line.split(FIELD_END)[: len(_FIELDS)]
    return JobLine(
        job_id.strip(), state.strip().partition(" ")[0], reason.strip(), comment.strip(),  # such as `CANCELLED by 1000`
        nodes.strip().replace("(null)", ""), _time_of(start), _time_of(end), seconds_of(limit.strip()),
        exit_code_of(code.strip()),
    )  # fmt: skip


def _no_answer(detail: str) -> ClusterUnreachableError:
    return ClusterUnreachableError(f"Slurm does not answer ({detail}).", "Runs continue; Loratory tries again.")


def _unreadable(command: str, answer: str, expected: str) -> ClusterUnreachableError:
    return ClusterUnreachableError(
        f"{command} printed {shorten(answer.strip(), 100)!r} instead of {expected}.",
        f"Runs continue; Loratory tries again. Check {command} on this machine.",
    )


def _time_of(text: str) -> float | None:
    return float(text) if text.strip().isdecimal() else None


def which_slurm() -> dict[str, str]:
    """Return the variables by which Slurm's commands find their cluster."""
    return {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in os.environ}


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a command and its children, which may hold the pipes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.communicate()

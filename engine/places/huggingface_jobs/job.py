"""Jobs at Hugging Face: each uploads its run, submits the job, forwards requests, and downloads results."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.engine.errors import EngineError, HubUnreachableError, SignInNeededError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.hub import JOBS, RunBucket, status_of
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.follower import JobView, RemoteExecutor, RemoteJob
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.account import DEFAULT_LIMIT_HOURS, LoginOf, logins_of, price_per_hour_usd
from loratory.engine.places.huggingface_jobs.layout import JobOrder, JobRecord, JobRequest, whole_lines
from loratory.engine.places.huggingface_jobs.transfer import JobDownload, collect_inputs
from loratory.engine.runs.control import request_stop_for_time
from loratory.engine.runs.job import JobEnd, JobSpec
from loratory.engine.runs.run import Run
from loratory.engine.wheel import build_wheel

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

# Debian with Python and uv; everything else comes with Loratory's wheel.
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")  # not imported here: it brings huggingface_hub
_COMMAND = ("uv", "run", "--no-project", "--python", "3.12", "--with", "huggingface_hub>=2.4", "python", "-c")

_POLL_SECONDS = 4.0
_MOST_DOUBLINGS = 4  # of the time between two polls, while they fail
_ENDED_STAGES = frozenset({"COMPLETED", "CANCELED", "ERROR", "DELETED"})
_GAP_SECONDS = 60.0  # after the end of a job, for pieces of its log that are still on the way
_MISSING_LOOKS = 3  # answers in a row that there is no such job
_LOG_LINES = 400  # of the job's own output, if its companion writes none
_LONGEST_LINE = 2_000
_LOG_SECONDS = 12.0  # between two reads of it: each may take five
_HOURS_TO_SEND = 0.25
_HOURS_IN_A_QUEUE = 24.0  # of Hugging Face, at most, as a guess
_SHORTEST_HOURS = 0.5  # of a job, unless a person chose a shorter one

_log = logging.getLogger(__name__)


class HubJob(RemoteJob[JobRecord]):
    """A job of a person; one thread calls `step` repeatedly, and it survives interruption between steps.

    Args:
        login_of: Returns the owner's login at Hugging Face; called at each step, since it may change or expire.
        poll_seconds: Between two polls of a job.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, run: Run, record: JobRecord, home: LoratoryHome, login_of: LoginOf,
        poll_seconds: float = _POLL_SECONDS, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        super().__init__(run, record)
        self.wants_stop = False
        self._home = home
        self._login_of = login_of
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._folder = layout.attempt_folder(run.id, record.attempt)
        self._download = JobDownload(run, home, self._folder)
        self._stop_was_sent = self._cancel_was_sent = False
        self._missing_looks = self._failures = 0
        self._account = "", ""  # a token, and the name of its account
        self._output_due = -math.inf
        self._ended_at: float | None = None
        self._end = JobEnd()  # after a restart, the worker's files have more detail

    @property
    def pause(self) -> float:
        return self._poll_seconds * 2.0 ** min(self._failures, _MOST_DOUBLINGS)

    def request_stop(self) -> None:
        self.wants_stop = True
        self.wake()

    def describe(self) -> str:
        return f"{self.record.hardware or self.record.flavor} at Hugging Face"

    def step(self) -> None:
        """Do the next step; what keeps it from being done is shown, and it is tried again."""
        try:
            self._advance()
        except SignInNeededError as error:
            self._note(error)  # Hugging Face was not asked: the next step costs nothing
            latest = self.record.sent_at + (self.record.limit_hours + _HOURS_IN_A_QUEUE) * 3600
            if self.wants_cancel and time.time() > latest:
                self.close(JobEnd(cause="The job is over. Its results were not downloaded: you had not signed in."))
        except (EngineError, OSError) as error:
            self._failures += 1
            if isinstance(error, OSError):
                error = StorageError(f"The run's folder cannot be written ({error.strerror}).", "Free some space.")
            self._note(error)
        except Exception as error:
            # A bucket can hold anything. Other jobs are still followed.
            _log.error("the job of %s cannot be followed (%s)", self.run.id, type(error).__name__)
            self._failures += 1
            self._note(HubUnreachableError("The data of this job at Hugging Face cannot be used.", "Cancel it."))
            if self._cancel_was_sent:
                self.close(JobEnd(cause="Cancelled; the data that the job left at Hugging Face cannot be used."))
        else:
            self._failures = 0

    def _note(self, error: EngineError) -> None:
        if self.record.job_id or isinstance(error, HubUnreachableError):
            self.show_trouble(error)
        else:  # refused before there was a job
            self.close(JobEnd(cause=error.what, advice=error.fix))

    def _advance(self) -> None:
        """Do what is next: submit the job, follow it to its end, remove its files."""
        record = self.record
        if self.view.stage == "ended":
            return
        if self.wants_cancel and not record.sent_at and not record.job_id:
            self.close(JobEnd(cause="Cancelled before it was sent."))
            return
        hours_left = self._use_login()
        self._bucket = RunBucket(self._api, self.record.bucket)
        if not record.job_id and not self._submit(hours_left):
            return
        if record.is_downloaded or self._follow():
            self._clean_up()

    def _follow(self) -> bool:
        """Forward requests and download what is new; return whether the job is over and all of it has arrived."""
        self._forward_requests()
        job = self._inspect()
        if job is not None:
            self.save(running_seconds=float((job.durations and job.durations.running_secs) or 0))
        has_gap, result = self._download.fetch(self._bucket)
        if result is not None and result.reached_limit:
            request_stop_for_time(self.run.folder, self.record.limit_hours)
        if job is not None and job.status.stage not in _ENDED_STAGES:
            self._show(is_running=job.status.stage == "RUNNING")
            return False
        self._ended_at = self._clock() if self._ended_at is None else self._ended_at
        if has_gap and self._clock() - self._ended_at < _GAP_SECONDS:
            return False
        if result is None and job is not None:
            self._append_output()
        self._end = JobEnd(exit_code=result.exit_code) if result is not None else self.record.end_without_result(job)
        self.save(is_downloaded=True)
        return True

    def _show(self, *, is_running: bool) -> None:
        if is_running and not self._download.has_log and self._clock() >= self._output_due:
            self._output_due = self._clock() + _LOG_SECONDS
            with contextlib.suppress(EngineError):  # the next step may give it
                write_atomically(self.run.folder.log, self._output())
        reason = "" if is_running else f"Waiting at Hugging Face for {self.record.hardware or self.record.flavor}."
        self.view = JobView("running" if is_running else "waiting", reason)

    def _clean_up(self) -> None:
        """Remove the job's files from the bucket after everything was downloaded; an empty bucket is then no loss."""
        self._bucket.remove([f"{self._folder}/{name}" for name in self._bucket.list(self._folder)])
        self.close(self._end)

    def _use_login(self) -> float:
        """Use the current login if its account is the job's; return for how many hours it is valid.

        Other accounts would not find the job, and it would count as lost.
        """
        record = self.record
        try:
            login = self._login_of(self.run.owner)
        except SignInNeededError as error:
            what = "follow this job" if record.job_id else "send this run"
            raise SignInNeededError(f"Sign in again to {what}.", error.fix) from None
        token = str(login.api.token)
        if token != self._account[0]:
            with JOBS.explain_errors("your account"):
                self._account = token, str(login.api.whoami()["name"])
        self._api, name = login.api, self._account[1]
        if not (record.job_id or record.sent_at):
            self.save(account=name, namespace=name if record.namespace in ("", record.account) else record.namespace)
        elif record.account not in ("", name):
            what = f"This job is of {record.account} at Hugging Face, and you are signed in there as {name}."
            raise SignInNeededError(what, f"Sign in as {record.account} to follow it.")
        return login.hours_left

    def _submit(self, hours_left: float) -> bool:
        """Upload the run and start the job, or find it if its id was not saved; return False if it was cancelled."""
        labels, namespace = {layout.LABEL: self.record.number}, self.record.namespace
        with JOBS.explain_errors(namespace):
            job = next(iter(self._api.list_jobs(labels=labels, namespace=namespace)), None)
        if job is None:
            if self.wants_cancel:
                self.close(JobEnd(cause="Cancelled before it was sent."))
                return False
            self._require_time(hours_left)
            self.view = JobView("preparing", "Sending the run to Hugging Face.")
            job = self._send()
        self.save(job_id=job.id, url=job.url)
        return True

    def _require_time(self, hours_left: float) -> None:
        """Limit the job to the lifetime of its token, which it needs to save results."""
        latest, limit = hours_left - _HOURS_TO_SEND, self.record.limit_hours
        if latest < min(limit, _SHORTEST_HOURS):
            raise SignInNeededError(
                "Sign in again to send this run: your sign-in ends too soon.", "The run is uploaded then."
            )
        if latest < limit:
            self.save(limit_hours=math.floor(latest * 10) / 10)

    def _send(self) -> JobInfo:
        self._bucket.make()
        wheel_file = build_wheel()
        wheel = f"wheels/{wheel_file.number}/{wheel_file.file_name}"  # one serves all jobs of one version
        if not self._bucket.list(wheel.rpartition("/")[0]):
            self._bucket.put({wheel: wheel_file.content})
        inputs = collect_inputs(self.run, self._home)
        # The local log must be the one that the worker continues.
        events = self.run.folder.events
        if events.exists():
            write_atomically(events, whole_lines(events))
        self._bucket.put({f"{self._folder}/{layout.INPUTS}/{name}": source for name, source in inputs.items()})
        record = self.record
        order = JobOrder(
            bucket=self._bucket.name, folder=self._folder, wheel=wheel, run_id=self.run.id, attempt=record.attempt,
            limit_seconds=record.limit_hours * 3600,
            poll_seconds=min(self._poll_seconds, 3.0),
        )  # fmt: skip
        with JOBS.explain_errors(record.namespace):
            hardware = next(
                (machine for machine in self._api.list_jobs_hardware() if machine.name == record.flavor), None
            )
            if hardware is not None:
                self.save(hardware=hardware.pretty_name, price_per_hour_usd=price_per_hour_usd(hardware))
            self.save(sent_at=time.time())
            return self._api.run_job(
                image=IMAGE,
                command=[*_COMMAND, _BOOTSTRAP.read_text(encoding="utf-8")],
                env={layout.ORDER_VARIABLE: order.model_dump_json()},
                secrets={"HF_TOKEN": self._api.token},
                flavor=record.flavor,
                timeout=round(record.limit_hours * 3600),
                name=f"loratory-{self.run.id}",
                labels={layout.LABEL: record.number},
                namespace=record.namespace,
            )

    def _forward_requests(self) -> None:
        if self.wants_cancel and not self._cancel_was_sent:
            with JOBS.explain_errors(self.record.namespace):
                self._api.cancel_job(job_id=self.record.job_id, namespace=self.record.namespace)
            self._cancel_was_sent = True
        if self.wants_stop and not self._stop_was_sent:
            self._bucket.put({f"{self._folder}/{layout.STOP_REQUEST}": b"stop"})
            self._stop_was_sent = True

    def _inspect(self) -> JobInfo | None:
        """Return the job; None if Hugging Face no longer knows it."""
        try:
            job = self._api.inspect_job(job_id=self.record.job_id, namespace=self.record.namespace)
        except Exception as error:
            with JOBS.explain_errors(self.record.namespace):
                if status_of(error) != 404:
                    raise
            self._missing_looks += 1
            if self._missing_looks < _MISSING_LOOKS:
                raise HubUnreachableError("Hugging Face does not show the job at present.", "Wait.") from None
            return None
        self._missing_looks = 0
        return job

    def _output(self) -> str:
        """Return the end of the job's own output, for example while Loratory is installed there."""
        record = self.record
        with JOBS.explain_errors(record.namespace):
            logs = self._api.fetch_job_logs(job_id=record.job_id, namespace=record.namespace, tail=_LOG_LINES)
            lines = [str(line)[:_LONGEST_LINE] for line in itertools.islice(logs, 2 * _LOG_LINES)]
        return "".join(f"{line}\n" for line in lines[-_LOG_LINES:])

    def _append_output(self) -> None:
        """Append the job's own output to the log, if its companion left no result, for example because installation failed."""
        before = ""
        if self._download.has_log:
            worker_log = self.run.folder.log.read_text(encoding="utf-8", errors="replace")
            before = f"{worker_log}\n--- Output of the job ---\n"
        write_atomically(self.run.folder.log, before + self._output())


class JobsExecutor(RemoteExecutor[HubJob]):
    """Submits jobs to Hugging Face, and follows those of each person in a separate thread, so people do not wait for others.

    Args:
        login_of: Returns a person's login at Hugging Face; a lab without it has none.
    """

    name = "jobs"
    title = "Hugging Face"
    advice_if_lost = "See its page."
    close_seconds = 10.0

    def __init__(
        self, home: LoratoryHome, login_of: LoginOf | None = None, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        super().__init__()
        self._home = home
        self._poll_seconds = poll_seconds
        self._login_of = login_of or logins_of(home)

    def submit(self, spec: JobSpec) -> HubJob:
        """Start to upload the run; raises StorageError if the disk is full."""
        jobs, request, before = spec.config.jobs, JobRequest.read(spec.run.folder), JobRecord.read(spec.run.folder)
        record = JobRecord(
            attempt=spec.attempt,
            namespace=jobs.namespace,
            flavor=request.flavor or jobs.flavor,
            limit_hours=request.limit_hours or jobs.limit_hours or DEFAULT_LIMIT_HOURS,
            earlier_usd=before.cost_usd if before is not None else 0.0,
        )
        return self.follow(self._job(spec.run, record.save(spec.run.folder)))

    def find(self, run: Run, attempt: int) -> HubJob | None:
        record = JobRecord.of_attempt(run.folder, attempt)
        return self._job(run, record) if record is not None else None

    def _job(self, run: Run, record: JobRecord) -> HubJob:
        return HubJob(run, record, self._home, self._login_of, self._poll_seconds)

    def thread_of(self, run: Run) -> str:
        return run.owner

    def step_jobs(self, jobs: list[HubJob]) -> None:
        for job in jobs:
            self.try_step(job, job.step)

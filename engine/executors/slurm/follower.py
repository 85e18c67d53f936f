"""One job from submission to its end: each step does one thing and saves it before the next."""

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

from engine.errors import ClusterUnreachableError, EngineError
from engine.executors.base import JobEnd
from engine.executors.slurm.commands import JobLine, Slurm
from engine.executors.slurm.fetch import Fetch
from engine.executors.slurm.place import ClusterPlace
from engine.executors.slurm.reasons import ENDED_STATES, WAITS_STATES, job_end, waits_words
from engine.executors.slurm.record import SlurmRecord
from engine.executors.slurm.script import job_options, job_script
from engine.files import size_and_time
from engine.runs.history.events import is_last_word
from engine.runs.history.log import last_event
from engine.runs.run import Run

_MISSES = 3  # looks at the queue in a row that do not show a job, before its worker decides
# Of a worker whose job Slurm has forgotten: it writes twice a minute, and a file server may show that a minute later.
_SILENT_SECONDS = 120.0
_TOO_MANY = "MaxSubmitJob"  # in Slurm's refusal where an account or QoS has as many jobs in the queue as it may have
_TOO_MANY_SECONDS = 30.0  # until such a submission is tried again
_WARNED_EARLIER_SECONDS = 65.0  # Slurm may warn a minute earlier than it was asked to

Stage = Literal["unseen", "preparing", "waiting", "running", "ended"]


class JobView(NamedTuple):
    """A job as it was seen last; replaced as a whole."""

    stage: Stage = "unseen"
    words: str = ""  # why it waits, or what is unusual
    advice: str = ""
    trouble: EngineError | None = None  # why Slurm does not answer
    is_suspended: bool = False
    end: JobEnd | None = None


class SlurmFollower:
    """Takes one job through Slurm; only the executor's thread calls `step`."""

    def __init__(
        self, run: Run, record: SlurmRecord, place: ClusterPlace, slurm: Slurm, fetch: Fetch | None = None
    ) -> None:
        self.run = run
        self.record = record
        self.place = place
        self.view = JobView("ended", end=job_end(record)) if record.is_over else JobView()
        self.wants_cancel = False
        self._slurm = slurm
        self._fetch = fetch  # brings what it needs before it is submitted
        self._misses = 0
        self._signs: object = None  # sizes and times of what the worker writes, and when they changed
        self._signs_changed = 0.0
        self._submits_from = 0.0

    @property
    def is_over(self) -> bool:
        return self.view.stage == "ended"

    def step(self, queue: Sequence[JobLine]) -> None:
        """Do the next step of the job, from the lines of Slurm's queue with its number, or from the whole queue.

        Raises:
            ClusterUnreachableError: If Slurm does not answer; the job is unchanged.
            StorageError: If the disk is full; saving is tried again.
        """
        own = [line for line in queue if self.record.number and self.record.number in line.comment.split()]
        if not self.record.job_id:
            if own:  # it was submitted, and we ended before its id was saved
                self._save(job_id=own[0].id)
            elif self.wants_cancel:
                if self._fetch is not None:
                    self._fetch.end()
                self._record_end(JobEnd(word="cancelled", cause="It left the queue before it was submitted to Slurm."))
                return
            elif not self._submit():
                return
        for other in own:
            # Two submissions of one attempt: the answer to the first was lost. Only the one of the record is released.
            if other.id != self.record.job_id and other.state not in ENDED_STATES:
                self._slurm.cancel(other.id)
        line = next((line for line in own if line.id == self.record.job_id), None)
        if line is None and own:
            line = own[0]._replace(id=self.record.job_id, state="PENDING", reason="JobHeldUser")
        if not self.record.is_released and not self.wants_cancel:
            if line is None or line.state in WAITS_STATES:
                self._slurm.release(self.record.job_id)
                line = line._replace(reason="None") if line is not None else None
            self._save(is_released=True)
        self._look(line)
        if self.wants_cancel and not self.is_over:
            self._cancel()

    def unreachable(self, trouble: EngineError) -> None:
        """Record that Slurm does not answer; the job is unchanged."""
        self.view = self.view._replace(trouble=trouble)

    def cancel_unseen(self) -> None:
        """Cancel the job while the queue cannot be read, where that is wanted.

        Raises:
            ClusterError: If Slurm does not answer, or refuses.
        """
        if self.wants_cancel and self.record.job_id and not self.is_over:
            self._cancel()

    def _submit(self) -> bool:
        try:
            waits_for = self._fetch.look() if self._fetch is not None else None
        except EngineError as error:
            self._record_end(JobEnd(cause=error.what, advice=error.fix))
            return False
        if waits_for is not None:
            self.view = JobView("preparing", waits_for)
            return False
        options, script = job_options(self.run, self.record, self.place), job_script(self.run, self.record, self.place)
        if time.monotonic() < self._submits_from:
            return False
        try:
            self._slurm.require_possible(script, options)
            job_id = self._slurm.submit(script, options)
        except ClusterUnreachableError:
            raise
        except EngineError as error:
            if _TOO_MANY in error.what:
                self.view = JobView(
                    "preparing", "Slurm takes no more jobs of this account at present; it is submitted later."
                )
                self._submits_from = time.monotonic() + _TOO_MANY_SECONDS
                return False
            self._record_end(JobEnd(cause=error.what, advice=error.fix))
            return False
        self._save(job_id=job_id)
        return True

    def _look(self, line: JobLine | None) -> None:
        self._misses += line is None
        if line is None and self._misses > 1:  # not yet in a queue that was read before its submission
            line = self._slurm.find(self.record.job_id)
            if line is not None and line.comment and self.record.number not in line.comment:
                line = None  # a job of another controller, or before its numbers began again
        if line is None:
            self._judge_by_worker()
            return
        self._misses = 0
        if line.nodes:
            self._save(nodes=line.nodes)
        if line.state in ENDED_STATES:
            self._save(end_state=line.state, exit_code=line.exit_code, near_limit=self._ended_near_limit(line))
            self._record_end(job_end(self.record))
        elif line.state in WAITS_STATES:
            self.view = JobView("waiting", *waits_words(line))
        else:
            is_suspended = line.state in ("SUSPENDED", "STOPPED")
            words = f"Slurm has suspended job {line.id}." if is_suspended else ""
            self.view = JobView("running", words, is_suspended=is_suspended)

    def _judge_by_worker(self) -> None:
        """Judge a job that Slurm does not know by what its worker wrote into the run's folder."""
        job_id = self.record.job_id
        if self._misses < _MISSES:
            if self.view.stage in ("unseen", "preparing") and self._misses == 1:
                self.view = JobView("waiting", f"Waiting at Slurm: job {job_id}.")
        elif self._worker_may_live():
            self.view = JobView("running", f"Slurm does not list job {job_id}, and its worker still writes.")
        else:
            self._record_end(job_end(self.record))

    def _worker_may_live(self) -> bool:
        folder, attempt = self.run.folder, self.record.attempt
        if folder.has_living_worker():
            return True
        worker, last = folder.read_worker(), last_event(folder.events)
        has_ended = last is not None and last.attempt == attempt and is_last_word(last.data)
        if worker is None or worker.attempt != attempt or has_ended:
            return False
        liveness = worker.liveness()
        if liveness != "unknown":
            return liveness == "alive"
        signs, now = tuple(map(size_and_time, (folder.events, folder.log, folder.activity))), time.monotonic()
        if signs != self._signs:
            self._signs, self._signs_changed = signs, now
        return now - self._signs_changed < _SILENT_SECONDS

    def _ended_near_limit(self, line: JobLine) -> bool:
        if line.started is None or line.ended is None or line.limit_seconds is None:
            return False
        warned_at = line.limit_seconds - self.record.warning_seconds - _WARNED_EARLIER_SECONDS
        return line.ended - line.started >= warned_at

    def _cancel(self) -> None:
        if self.view.stage == "running":  # what a person wants to end at once saves nothing
            self._slurm.kill(self.record.job_id)
        else:
            self._slurm.cancel(self.record.job_id)

    def _record_end(self, end: JobEnd) -> None:
        self._save(is_over=True)
        self.view = JobView("ended", end=end)

    def _save(self, **changes: object) -> None:
        self.record = self.record.changed(self.run.folder, **changes)

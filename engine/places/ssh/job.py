"""Runs on machines by SSH: each is sent, put into the queue there, and what it writes is fetched until it has ended."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from loratory.engine.errors import EngineError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.follower import JobView, RemoteExecutor, RemoteJob, SavedJob, Stage
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.layout import JobResult, whole_lines
from loratory.engine.places.huggingface_jobs.transfer import JobDownload, collect_inputs
from loratory.engine.places.ssh.machine import Connection, Machine, MachineError, MachineUnreachableError, read_machines
from loratory.engine.places.ssh.there import PIECE_BYTES
from loratory.engine.runs.job import JobEnd, JobSpec
from loratory.engine.runs.run import LIVE_STATES, Run, RunState

_POLL_SECONDS = 4.0
_MOST_DOUBLINGS = 3  # of the time between two polls, while they fail
_MISSING_LOOKS = 3  # answers in a row that do not know the run
_MOST_BYTES = 1 << 40

Connect = Callable[[str, Machine], Connection]


class MachineRecord(SavedJob, frozen=True):
    """The job of one attempt."""

    machine: str
    is_fetched: bool = False  # it is over once it is removed there, too


class _File(NamedTuple):
    size: int
    xet_hash: str  # which changes with the file
    name: str  # there


class _Files:
    """What a run has written there, as `JobDownload` reads a bucket."""

    def __init__(
        self, connection: Connection, run: Run, listing: Mapping[str, Sequence[int]], end: JobResult | None
    ) -> None:
        self._connection, self._run, self._listing, self._end = connection, run, listing, end

    def list(self, _folder: str) -> dict[str, Any]:
        """Return the files by their names in a bucket."""
        files = {}
        for name, (size, changed) in self._listing.items():
            if name == "events.jsonl":
                here = self._run.folder.events.stat().st_size if self._run.folder.events.exists() else 0
                if size > here:
                    piece = min(size - here, PIECE_BYTES)
                    files[layout.segment_name(here)] = _File(piece, "", f"{name}@{here}")
            elif not name.startswith("adapter/"):
                files[name] = _File(size, f"{size}-{changed}", name)
            elif self._end is not None:
                files[f"{layout.RESULTS}/{name}"] = _File(size, "", name)
        if self._end is not None:
            files[layout.END] = _File(1, "", "")
        return files

    def get(self, files: Sequence[tuple[_File, Path]]) -> None:
        """Fetch files to their places."""
        places = {file.name: path for file, path in files if file.name}
        for file, path in files:
            if not file.name and self._end is not None:
                write_atomically(path, self._end.model_dump_json())
        if not places:
            return
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=self._run.folder.path) as folder:
            most = sum(file.size for file, _ in files) + len(files) * PIECE_BYTES
            self._connection.fetch(places, Path(folder), "send", self._run.id, most_bytes=min(most, _MOST_BYTES))
            for name, path in places.items():
                if (Path(folder) / name).exists():  # a checkpoint may have made room for a newer one
                    path.parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / name).replace(path)

    def remove(self, _names: Sequence[str]) -> None:
        """Leave it: the run's folder there stays as it is until it is fetched."""


class SshJob(RemoteJob[MachineRecord]):
    """A run on a machine; one thread calls `step` repeatedly, and it survives interruption between steps."""

    def __init__(self, run: Run, record: MachineRecord, home: LoratoryHome, connect: Connect) -> None:
        super().__init__(run, record)
        self._home, self._connect = home, connect
        self._download = JobDownload(run, home, "")
        self._wants_stop = self._stop_was_sent = self._cancel_was_sent = False
        self._failures = self._missing_looks = 0
        self.is_closing: Callable[[], bool] = lambda: False

    @property
    def pause(self) -> float:
        return _POLL_SECONDS * 2.0 ** min(self._failures, _MOST_DOUBLINGS)

    def request_stop(self) -> None:
        self._wants_stop = True
        self.wake()

    def describe(self) -> str:
        return self.record.machine

    def step(self) -> None:
        """Do the next step; what keeps it from being done is shown, and it is tried again."""
        try:
            self._advance()
        except (EngineError, OSError) as error:
            self._failures += 1
            if isinstance(error, OSError):
                error = StorageError(f"The run's folder cannot be written ({error.strerror}).", "Free some space.")
            if self.record.job_id or isinstance(error, MachineUnreachableError):
                self.show_trouble(error)
            else:  # refused before it was there
                self.close(JobEnd(cause=error.what, advice=error.fix))
        else:
            self._failures = 0

    def _advance(self) -> None:
        if self.view.stage == "ended":
            return
        if self.wants_cancel and not self.record.job_id:
            self.close(JobEnd(cause="Cancelled before it was sent."))
            return
        there = self._machine()
        if not self.record.job_id:
            self._send(there)
            self.save(job_id=f"{self.record.machine}/{self.run.id}")
        if self._wants_stop and not self._stop_was_sent:
            there.call("request", self.run.id, "stop")
            self._stop_was_sent = True
        if self.wants_cancel and not self._cancel_was_sent:
            there.call("request", self.run.id, "cancel")
            self._cancel_was_sent = True
        answer = there.call("report", self.run.id)
        if answer["state"] is None:
            self._note_missing()
            return
        self._missing_looks, state = 0, RunState.model_validate(answer["state"])
        ended = JobResult(exit_code=int(state.state not in ("completed", "stopped"))) if state.is_final else None
        self._download.fetch(
            cast(Any, _Files(there, self.run, answer["files"], ended))
        )  # which has of a bucket what is read of it
        if not state.is_final:
            stage: Stage = "running" if state.state in LIVE_STATES else "waiting"
            reason = "" if stage == "running" else f"Waiting on {self.record.machine}. {state.cause}".strip()
            self.view = JobView(stage, reason, state.advice)
        elif self.run.folder.events.stat().st_size >= answer["files"].get("events.jsonl", (0, 0))[0]:
            self.save(is_fetched=True)
            there.call("remove", self.run.id)
            there.close()
            self.close(self._end_of(state))

    def _end_of(self, state: RunState) -> JobEnd:
        if state.reason == "machine_restarted":  # it is sent again, and continues
            return JobEnd(verdict="node_failed", cause=f"{self.record.machine} was restarted.")
        if state.state in ("completed", "stopped"):
            return JobEnd(exit_code=0)
        return JobEnd(cause=f"On {self.record.machine}: {state.cause or state.state}", advice=state.advice)

    def _note_missing(self) -> None:
        self._missing_looks += 1
        if self._missing_looks >= _MISSING_LOOKS:
            what = f"{self.record.machine} does not have this run any more."
            self.close(
                JobEnd(cause=what, advice="Resume it: it continues from the newest checkpoint that arrived here.")
            )

    def _machine(self) -> Connection:
        machine = read_machines(self._home).get(self.record.machine)
        if machine is None:
            raise MachineUnreachableError(f"{self.record.machine} is not in your list of machines.", "Add it again.")
        return self._connect(self.record.machine, machine)

    def _send(self, there: Connection) -> None:
        """Send what is not there yet; what a cut link left behind is not sent twice."""
        self.view = JobView("preparing", f"Sending the run to {self.record.machine}.")
        events = self.run.folder.events
        if events.exists():  # the log here must be the one that the worker continues
            write_atomically(events, whole_lines(events))
        inputs, have = collect_inputs(self.run, self._home), there.call("have", self.run.id)
        missing = {
            name: source
            for name, source in inputs.items()
            if isinstance(source, bytes) or have.get(name) != source.stat().st_size
        }
        there.send(missing, "receive", self.run.id, is_cancelled=lambda: self.wants_cancel or self.is_closing())
        there.call("start", self.run.id, str(self.record.attempt))


class SshExecutor(RemoteExecutor[SshJob]):
    """Sends runs to machines, and follows those of each machine in a thread of its own."""

    name = "ssh"
    title = "the machine"
    advice_if_lost = "Look at it with `loratory machine check`."
    close_seconds = 10.0

    def __init__(self, home: LoratoryHome, connect: Connect = Connection) -> None:
        super().__init__()
        self._home, self._connect = home, connect
        self._connections: dict[tuple[str, Machine], Connection] = {}  # each used by the thread of its machine alone

    def submit(self, spec: JobSpec) -> SshJob:
        """Start to send the run.

        Raises:
            MachineError: If it names no machine.
            StorageError: If the disk is full.
        """
        if not spec.config.ssh.machine:
            raise MachineError("This run names no machine.", "Name one in ssh.machine.")
        record = MachineRecord(attempt=spec.attempt, machine=spec.config.ssh.machine)
        return self.follow(self._job(spec.run, record.save(spec.run.folder)))

    def find(self, run: Run, attempt: int) -> SshJob | None:
        record = MachineRecord.of_attempt(run.folder, attempt)
        return self._job(run, record) if record is not None else None

    def _job(self, run: Run, record: MachineRecord) -> SshJob:
        job = SshJob(run, record, self._home, self._connection_to)
        job.is_closing = lambda: self.is_closed
        return job

    def _connection_to(self, name: str, machine: Machine) -> Connection:
        if (name, machine) not in self._connections:
            self._connections[name, machine] = self._connect(name, machine)
        return self._connections[name, machine]

    def close(self) -> None:
        super().close()
        for connection in list(self._connections.values()):
            connection.close()

    def thread_of(self, run: Run) -> str:
        record = MachineRecord.read(run.folder)
        return record.machine if record is not None else ""

    def step_jobs(self, jobs: list[SshJob]) -> None:
        for job in jobs:
            self.try_step(job, job.step)

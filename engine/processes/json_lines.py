"""The asking end of a helper process: start it, ask, cancel, end it. `loratory.engine.processes.messages` has the protocol."""

import contextlib
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from queue import Empty, Queue

from loratory.engine.errors import ModelLimitError, WorkerError
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.messages import (
    CancelledRequestError,
    JsonObject,
    NotBegunError,
    OnProgress,
    ProcessEndedError,
    error_from_json,
)
from loratory.engine.processes.spawn import Access, Launcher, spawn_helper, worker_argv

_LOOK_SECONDS = 1.0
_LOOK_FOR_TURN_SECONDS = 0.1
_LOOK_FOR_STOP_SECONDS = 0.2
_OBEYS_WITHIN_SECONDS = 3.0
_LAUNCHER_OBEYS_WITHIN_SECONDS = 20.0
_ENDS_WITHIN_SECONDS = 30.0


def result_of(answers: Iterable[JsonObject], on_progress: OnProgress | None = None) -> JsonObject:
    """Wait for the result of a request, as its `stream` has it, and pass its progress on."""
    for answer in answers:
        if "result" in answer:
            result: JsonObject = answer["result"]
            return result
        if on_progress is not None and "progress" in answer:
            on_progress(answer["progress"])
    raise AssertionError("a stream ends with its result or an error")


@dataclass
class _Running:
    """One start of the worker; all but `closed` is written by the thread that reads its answers."""

    process: subprocess.Popen[bytes]
    life_line: int | None
    log_begins: int = 0  # bytes of the log that are of earlier ones
    turn: int | None = None  # the request that is worked on
    last_answer: float | None = None  # when it last sent anything; None until it is ready
    closed: bool = False  # by us
    is_launcher: bool = False  # of a worker on another machine

    @property
    def is_alive(self) -> bool:
        # An identity too: while threads of a killed process end, it can't be waited for yet.
        return self.process.poll() is None and ProcessIdentity.from_pid(self.process.pid) is not None

    def write(self, message: JsonObject) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerError("A helper process ended unexpectedly.", "Try again; it restarts.") from error

    def write_if_alive(self, message: JsonObject) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(WorkerError):
                self.write(message)

    def end(self, timeout_seconds: float) -> None:
        self.closed = True
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            if not (self.is_launcher and self._obeys()):
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()

    def _obeys(self) -> bool:
        """Whether a launcher ends when it is asked to, as does what it has started; once killed, it could not pass that on."""
        self.process.terminate()
        try:
            self.process.wait(_LAUNCHER_OBEYS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True


@dataclass
class _Pending:
    """A request that is under way."""

    running: _Running
    answers: "Queue[JsonObject | None]" = field(default_factory=Queue)  # None: the process ended
    asked_at: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    subject: str = ""

    def waits_longer_than(self, seconds: float) -> bool:
        """Whether a worker that is ready has sent nothing for so long, and this request's turn has not come."""
        last = self.running.last_answer
        return last is not None and time.monotonic() - max(self.asked_at, last) > seconds


@dataclass(eq=False)
class JsonLinesProcess:
    """A worker process that answers one request at a time; starts on first use and again after it died."""

    module: str  # calls `serve`
    _: KW_ONLY
    log_file: Path  # takes its stderr
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # in addition to what every process gets
    access: Collection[Access] = ()  # what the worker may log in to
    restarts: bool = True  # off for a worker whose memory is the point: once dead or closed, it answers no more
    launcher: Launcher | None = None  # of a worker on another machine

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        # Guards `_running`, `_closed`, `_answers` and writes to the stdin of the worker; many threads may ask at once.
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False
        self._answers: dict[int, _Pending] = {}

    @property
    def pid(self) -> int | None:
        """Process id while the worker lives."""
        running = self._running
        return running.process.pid if running is not None and running.process.poll() is None else None

    @property
    def requests(self) -> int:
        """How many requests are under way."""
        return len(self._answers)

    @property
    def silent_seconds(self) -> float:
        """Time since the worker last sent anything; 0 while it starts or has nothing to do."""
        last = self._running.last_answer if self._running is not None else None
        return time.monotonic() - last if last is not None and self._answers else 0.0

    def start(self) -> None:
        """Start the worker now, so the first question need not wait for its imports."""
        with self._lock:
            self._ensure_started()

    def call(
        self,
        method: str,
        params: JsonObject,
        *,
        on_progress: OnProgress | None = None,
        stopped: threading.Event | None = None,
    ) -> JsonObject:
        """Ask and wait for the result.

        Once another thread sets `stopped`, the request is cancelled, and a process that does not obey within seconds ended.

        Raises:
            EngineError: As raised by the handler, of the same class.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended before it answered.
        """
        if stopped is None:
            return result_of(self.stream(method, params), on_progress)
        request_id = self.reserve_id()
        answer_event = threading.Event()

        def watch() -> None:
            while not answer_event.is_set():
                if stopped.wait(_LOOK_FOR_STOP_SECONDS):
                    self.cancel(request_id)
                    if not answer_event.wait(_OBEYS_WITHIN_SECONDS):
                        self.close(timeout_seconds=0.0)
                    return

        watcher = threading.Thread(target=watch, name="stop-watch", daemon=True)
        watcher.start()
        try:
            return result_of(self.stream(method, params, request_id=request_id), on_progress)
        except Exception as error:
            if stopped.is_set():
                raise CancelledRequestError from error
            raise
        finally:
            answer_event.set()
            watcher.join()

    def reserve_id(self) -> int:
        """Return the number of a request before it is sent, so another thread can cancel it."""
        return next(self._ids)

    def cancel(self, request_id: int) -> None:
        """Ask the handler of a request to end early; its caller still gets what it answers."""
        with self._lock:
            if self._running is not None:
                self._running.write_if_alive({"cancel": request_id})

    def stream(
        self, method: str, params: JsonObject, *, request_id: int | None = None, begins_within: float | None = None
    ) -> Iterator[JsonObject]:
        """Ask, and yield each `{"progress": …}` and at last the `{"result": …}`; closing it early cancels the request.

        Args:
            request_id: From `reserve_id`, for callers that may want to `cancel`.
            begins_within: Seconds after which a request that a ready worker has not begun is taken back.

        Raises:
            EngineError: As raised by the handler, of the same class.
            NotBegunError: If it was taken back.
            ProcessEndedError: If the process ended before it answered.
        """
        request_id = self.reserve_id() if request_id is None else request_id
        with self._lock:
            running = self._ensure_started()
            pending = self._answers[request_id] = _Pending(running)
            try:
                running.write({"id": request_id, "method": method, "params": params})
            except WorkerError:  # it has ended since it was seen to be alive
                pending.answers.put(None)
        finished = False
        try:
            while not finished:
                answer = _next_answer(pending, begins_within)
                finished = answer is None or "progress" not in answer
                if answer is None:
                    raise self._death(running, request_id, pending)
                if "error" in answer:
                    error = error_from_json(answer["error"])
                    if isinstance(error, ModelLimitError):
                        error.subject = pending.subject
                    raise error
                yield answer
        finally:
            with self._lock:
                self._answers.pop(request_id, None)
                if not finished:
                    running.write_if_alive({"cancel" if pending.has_begun else "withdraw": request_id})

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End the process; what it held on a device is free afterwards."""
        with self._lock:
            running, self._running = self._running, None
            self._closed = True
        if running is not None:
            running.end(timeout_seconds)

    def close_if_unused(self) -> None:
        """End the process where no request is under way; it starts again with the next one."""
        with self._lock:
            if self._answers or self._running is None:
                return
            running, self._running = self._running, None
        running.end(timeout_seconds=5.0)

    def _ensure_started(self) -> _Running:
        if self._running is not None and self._running.is_alive:
            return self._running
        if not self.restarts and (self._closed or self._running is not None):
            raise self._death(self._running)
        log_begins = self.log_file.stat().st_size if self.log_file.exists() else 0
        process, life_line = spawn_helper(
            worker_argv(self.module, self.arguments),
            log_file=self.log_file,
            environment=self.environment,
            access=self.access,
            launcher=self.launcher,
        )
        running = self._running = _Running(process, life_line, log_begins, is_launcher=self.launcher is not None)
        threading.Thread(target=self._read_answers, args=(running,), daemon=True).start()
        return running

    def _read_answers(self, running: _Running) -> None:
        process = running.process
        assert process.stdout is not None
        assert process.stdin is not None
        with contextlib.suppress(ValueError, OSError):  # the pipe was closed under us by close()
            for line in process.stdout:
                try:
                    self._pass_on(json.loads(line), running)
                except (ValueError, KeyError, TypeError):
                    continue  # not ours: a library wrote to the raw descriptor
        for pending in list(self._answers.values()):
            if pending.running is running:  # not those of a process that was started since
                pending.answers.put(None)
        for pipe in (process.stdout, process.stdin):
            with contextlib.suppress(OSError):  # what could not be sent to a process that ended
                pipe.close()
        if running.life_line is not None:
            # A child that the worker left behind may keep its pipes open for longer; the worker itself has ended.
            os.close(running.life_line)

    def _pass_on(self, answer: JsonObject, running: _Running) -> None:
        running.last_answer = time.monotonic()
        if "ready" in answer:
            return
        request_id = answer["id"]
        pending = self._answers.get(request_id) or _Pending(running)  # what nothing waits for any more is dropped
        if "turn" in answer:
            running.turn = request_id
            pending.has_begun = True
        elif "subject" in answer:
            pending.subject = answer["subject"]
        else:
            if "progress" not in answer and running.turn == request_id:
                running.turn = None
            pending.answers.put(answer)

    def death(self) -> WorkerError:
        """Return why the process ended."""
        with self._lock:
            running = self._running
        return self._death(running)

    def _death(
        self, running: _Running | None, request_id: int | None = None, pending: _Pending | None = None
    ) -> WorkerError:
        code = None
        if running is not None:
            # Its pipes close a moment before it can be asked how it ended, on a busy machine seconds.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = running.process.wait(_ENDS_WITHIN_SECONDS)
        if code is not None and code < 0:
            reason = f"was ended by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
        else:
            reason = f"ended with code {code}" if code is not None else "was closed"
        if running is not None and self.launcher is not None:
            reason = self.launcher.cause(self.log_file, running.log_begins) or reason
        what = f"The helper process {self.module.rsplit('.', 2)[-2]} {reason} before it answered."
        fix = f"Try again; if it happens twice, see its log {self.log_file.name}."
        if running is None or running.closed:
            return WorkerError(what, fix)
        at_fault = request_id is not None and running.turn == request_id
        return ProcessEndedError(what, fix, code, at_fault=at_fault, subject=pending.subject if pending else "")


def _next_answer(pending: _Pending, begins_within: float | None) -> JsonObject | None:
    """Wait for the next answer; None where the process ended before it."""
    while True:
        limit = None if pending.has_begun else begins_within
        try:
            return pending.answers.get(timeout=_LOOK_SECONDS if limit is None else _LOOK_FOR_TURN_SECONDS)
        except Empty:
            if pending.running.process.poll() is not None:
                return None
            if limit is not None and pending.waits_longer_than(limit):
                raise NotBegunError from None

"""The asking end of a helper process: start it, ask, cancel, end it. `engine.processes.messages` has the protocol."""

import contextlib
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from engine.errors import ModelLimitError, WorkerError
from engine.processes.environment import Access
from engine.processes.identity import ProcessIdentity
from engine.processes.messages import (
    JsonObject,
    NotBegunError,
    ProcessEndedError,
    error_from_json,
)
from engine.processes.spawn import LifeLine, spawn_helper, worker_argv

_LOOK_SECONDS = 1.0
_LOOK_FOR_TURN_SECONDS = 0.1


@dataclass
class _Running:
    """One start of the worker; all but `closed` is written by the thread that reads its answers."""

    process: subprocess.Popen[bytes]
    life_line: LifeLine | None
    turn: int | None = None  # the request that is worked on
    heard: float | None = None  # when it last sent anything; None until it is ready
    closed: bool = False  # by us

    @property
    def is_alive(self) -> bool:
        # An identity too: while threads of a killed process end, it can't be waited for yet.
        return self.process.poll() is None and ProcessIdentity.of(self.process.pid) is not None


@dataclass
class _Awaited:
    """A request that is under way."""

    running: _Running
    answers: "Queue[JsonObject | None]"  # None: the process ended
    begun: bool = False
    subject: str = ""


class JsonLinesProcess:
    """A worker process that answers one request at a time; starts on first use and again after it died.

    Args:
        module: Module that calls `serve`.
        log_file: Takes its stderr.
        environment: Variables in addition to those that every process gets.
        access: What the worker may log in to.
        restarts: Off for a worker whose memory is the point: once dead or closed, it answers no more.
    """

    def __init__(
        self,
        module: str,
        *,
        log_file: Path,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        access: Collection[Access] = (),
        restarts: bool = True,
    ) -> None:
        self._module = module
        self._arguments = arguments
        self._log_file = log_file
        self._environment = dict(environment or {})
        self._access = tuple(access)
        self._restarts = restarts
        self._ids = itertools.count(1)
        # Guards `_running`, `_closed`, `_answers` and writes to the stdin of the worker; many threads may ask at once.
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False
        self._answers: dict[int, _Awaited] = {}

    @property
    def pid(self) -> int | None:
        """Process id while the worker lives."""
        running = self._running
        return running.process.pid if running is not None and running.process.poll() is None else None

    @property
    def is_ready(self) -> bool:
        """Whether the worker lives and its imports are over."""
        return self.pid is not None and self._running is not None and self._running.heard is not None

    @property
    def requests(self) -> int:
        """How many requests are under way."""
        return len(self._answers)

    @property
    def silent_seconds(self) -> float:
        """Time since the worker last sent anything; 0 while it starts or has nothing to do."""
        heard = self._running.heard if self._running is not None else None
        return time.monotonic() - heard if heard is not None and self._answers else 0.0

    def start(self) -> None:
        """Start the worker now, so the first question need not wait for its imports."""
        with self._lock:
            self._ensure_started()

    def call(
        self, method: str, params: JsonObject, *, on_progress: Callable[[JsonObject], None] | None = None
    ) -> JsonObject:
        """Ask and wait for the result.

        Raises:
            EngineError: As raised by the handler, of the same class.
            WorkerError: If the process ended before it answered.
        """
        for answer in self.stream(method, params):
            if "result" in answer:
                result: JsonObject = answer["result"]
                return result
            if on_progress is not None:
                on_progress(answer["progress"])
        raise AssertionError("a stream ends with its result or an error")

    def reserve_id(self) -> int:
        """Number a request before it is sent, so another thread can cancel it."""
        return next(self._ids)

    def cancel(self, request_id: int) -> None:
        """Ask the handler of a request to end early; its caller still gets what it answers."""
        with self._lock:
            running = self._running
            if running is not None and running.process.poll() is None:
                with contextlib.suppress(WorkerError):
                    self._write(running, {"cancel": request_id})

    def stream(
        self,
        method: str,
        params: JsonObject,
        *,
        request_id: int | None = None,
        begins_within: float | None = None,
    ) -> Iterator[JsonObject]:
        """Ask, and yield each `{"progress": …}` and at last the `{"result": …}`; closing it early cancels the request.

        Args:
            method: Name of the handler.
            params: What the handler gets.
            request_id: From `reserve_id`, for callers that may want to `cancel`.
            begins_within: Seconds after which a request that a ready worker has not begun is taken back.

        Raises:
            EngineError: As raised by the handler, of the same class.
            NotBegunError: If it was taken back.
            ProcessEndedError: If the process ended before it answered.
        """
        answers: Queue[JsonObject | None] = Queue()
        request_id = self.reserve_id() if request_id is None else request_id
        with self._lock:
            running = self._ensure_started()
            awaited = self._answers[request_id] = _Awaited(running, answers)
            self._write(running, {"id": request_id, "method": method, "params": params})
        asked = time.monotonic()
        finished = False
        try:
            while True:
                may_be_taken_back = begins_within is not None and not awaited.begun
                try:
                    answer = answers.get(timeout=_LOOK_FOR_TURN_SECONDS if may_be_taken_back else _LOOK_SECONDS)
                except Empty:
                    if running.process.poll() is None:
                        if may_be_taken_back and _waits_longer(awaited, asked, begins_within or 0.0):
                            raise NotBegunError from None
                        continue
                    answer = None
                if answer is None:
                    finished = True
                    raise self._death(running, request_id, awaited)
                if "error" in answer:
                    finished = True
                    error = error_from_json(answer["error"])
                    if isinstance(error, ModelLimitError):
                        error.subject = awaited.subject
                    raise error
                finished = "result" in answer
                yield answer
                if finished:
                    return
        finally:
            with self._lock:
                self._answers.pop(request_id, None)
                if not finished and running.process.poll() is None:
                    with contextlib.suppress(WorkerError):
                        self._write(running, {"cancel" if awaited.begun else "withdraw": request_id})

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End the process; whatever it held on a device is free afterwards."""
        with self._lock:
            running, self._running = self._running, None
            self._closed = True
        if running is not None:
            self._end(running, timeout_seconds)

    def close_if_unused(self) -> None:
        """End the process where no request is under way; it starts again with the next one."""
        with self._lock:
            if self._answers or self._running is None:
                return
            running, self._running = self._running, None
        self._end(running, timeout_seconds=5.0)

    @staticmethod
    def _end(running: _Running, timeout_seconds: float) -> None:
        running.closed = True
        process = running.process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _ensure_started(self) -> _Running:
        if self._running is not None and self._running.is_alive:
            return self._running
        if not self._restarts and (self._closed or self._running is not None):
            raise self._death(self._running)
        process, line = spawn_helper(
            worker_argv(self._module, self._arguments),
            log_file=self._log_file,
            environment=self._environment,
            access=self._access,
        )
        running = self._running = _Running(process, line)
        threading.Thread(target=self._read_answers, args=(running,), daemon=True).start()
        return running

    @staticmethod
    def _write(running: _Running, message: JsonObject) -> None:
        stdin = running.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerError("A helper process ended unexpectedly.", "Try again; it restarts.") from error

    def _read_answers(self, running: _Running) -> None:
        process = running.process
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # the pipe was closed under us by close()
            for line in process.stdout:
                try:
                    answer = json.loads(line)
                    self._pass_on(answer, running)
                except (ValueError, KeyError, TypeError):
                    continue  # not ours: a library wrote to the raw descriptor
        for awaited in list(self._answers.values()):
            if awaited.running is running:  # not those of a process that was started since
                awaited.answers.put(None)
        for pipe in (process.stdout, process.stdin):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent to a process that ended
                    pipe.close()
        if running.life_line is not None:
            # A child that the worker left behind may keep its pipes open for longer; the worker itself has ended.
            os.close(running.life_line.held)

    def _pass_on(self, answer: JsonObject, running: _Running) -> None:
        running.heard = time.monotonic()
        if "ready" in answer:
            return
        request_id = answer["id"]
        awaited = self._answers.get(request_id)
        if "turn" in answer:
            running.turn = request_id
            if awaited is not None:
                awaited.begun = True
        elif "subject" in answer:
            if awaited is not None:
                awaited.subject = answer["subject"]
        else:
            if "progress" not in answer and running.turn == request_id:
                running.turn = None
            if awaited is not None:
                awaited.answers.put(answer)

    def _death(
        self, running: _Running | None, request_id: int | None = None, awaited: _Awaited | None = None
    ) -> WorkerError:
        code = None
        if running is not None:
            # Its pipes close a moment before it can be asked how it ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = running.process.wait(timeout=1.0)
        if code is not None and code < 0:
            reason = f"was ended by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
        else:
            reason = f"ended with code {code}" if code is not None else "was closed"
        what = f"The helper process {self._module.rsplit('.', 2)[-2]} {reason} before it answered."
        fix = f"Try again; if it happens twice, its log {self._log_file.name} says more."
        if running is None or running.closed:
            return WorkerError(what, fix)
        at_fault = request_id is not None and running.turn == request_id
        return ProcessEndedError(what, fix, code, at_fault=at_fault, subject=awaited.subject if awaited else "")


def _waits_longer(awaited: _Awaited, asked: float, seconds: float) -> bool:
    """Whether a worker that is ready has sent nothing for so long, and this request's turn has not come."""
    heard = awaited.running.heard
    return heard is not None and time.monotonic() - max(asked, heard) > seconds

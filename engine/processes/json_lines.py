"""Questions and answers as JSON lines over stdio: how we talk to the inspector, chat and export processes.

    → {"id": 7, "method": "render", "params": {…}}
    ← {"id": 7, "progress": {…}}            any number of times
    ← {"id": 7, "result": {…}}              or {"id": 7, "error": {"what": …, "fix": …, "kind": "DatasetError"}}
    → {"cancel": 7}                         asks the handler of request 7 to end early

`engine.processes.answering` is the other end.
"""

import contextlib
import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple

import engine.errors
from engine.errors import EngineError, WorkerError
from engine.processes.identity import ProcessIdentity
from engine.processes.spawn import spawn, worker_argv

JsonObject = dict[str, Any]


class CancelledRequestError(EngineError):
    """The caller asked for an early end."""

    def __init__(self) -> None:
        super().__init__("The request was stopped.", "Ask again when you need it.")


class _Awaited(NamedTuple):
    """A request that is under way."""

    process: subprocess.Popen[bytes]
    answers: "Queue[JsonObject | None]"  # None: the process ended


class JsonLinesProcess:
    """A worker process that answers one request at a time; starts on first use and again after it died.

    Args:
        module: Module that calls `serve`.
        log_file: Takes its stderr.
        environment: Variables set beside the inherited ones.
        restarts: Off for a worker whose memory is the point: once dead or closed, it answers no more.
    """

    def __init__(
        self,
        module: str,
        *,
        log_file: Path,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        restarts: bool = True,
    ) -> None:
        self._module = module
        self._arguments = arguments
        self._log_file = log_file
        self._environment = dict(environment or {})
        self._restarts = restarts
        self._ids = itertools.count(1)
        # Guards `_process`, `_closed`, `_answers` and writes to the stdin of the worker; many threads may ask at once.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._answers: dict[int, _Awaited] = {}

    @property
    def pid(self) -> int | None:
        """Process id while the worker lives."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the worker now, so that the first question need not wait for its imports."""
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
        raise self._death()

    def reserve_id(self) -> int:
        """Number a request before it is sent, so that another thread can cancel it."""
        return next(self._ids)

    def cancel(self, request_id: int) -> None:
        """Ask the handler of a request to end early; whoever streams that request still gets what it answers."""
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                with contextlib.suppress(WorkerError):
                    self._write(process, {"cancel": request_id})

    def stream(self, method: str, params: JsonObject, *, request_id: int | None = None) -> Iterator[JsonObject]:
        """Ask, and yield each `{"progress": …}` and at last the `{"result": …}`; closing it early cancels the request.

        Args:
            method: Name of the handler.
            params: What the handler gets.
            request_id: From `reserve_id`, for callers that may want to `cancel`.

        Raises:
            EngineError: As raised by the handler, of the same class.
            WorkerError: If the process ended before it answered.
        """
        answers: Queue[JsonObject | None] = Queue()
        request_id = self.reserve_id() if request_id is None else request_id
        with self._lock:
            process = self._ensure_started()
            self._answers[request_id] = _Awaited(process, answers)
            self._write(process, {"id": request_id, "method": method, "params": params})
        finished = False
        try:
            while True:
                try:
                    answer = answers.get(timeout=1.0)
                except Empty:
                    if process.poll() is None:
                        continue
                    answer = None
                if answer is None:
                    finished = True
                    raise self._death()
                if "error" in answer:
                    finished = True
                    raise _error_from_json(answer["error"])
                finished = "result" in answer
                yield answer
                if finished:
                    return
        finally:
            with self._lock:
                self._answers.pop(request_id, None)
                if not finished and process.poll() is None:
                    with contextlib.suppress(WorkerError):
                        self._write(process, {"cancel": request_id})

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End the process; whatever it held on a device is free afterwards."""
        with self._lock:
            process, self._process = self._process, None
            self._closed = True
        if process is None:
            return
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

    def _ensure_started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None and ProcessIdentity.of(self._process.pid):
            return self._process  # an identity too: while threads of a killed process end, it can't be waited for yet
        if not self._restarts and (self._closed or self._process is not None):
            raise self._death()
        self._process = spawn(
            worker_argv(self._module, self._arguments),
            log_file=self._log_file,
            environment=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._read_answers, args=(self._process,), daemon=True).start()
        return self._process

    @staticmethod
    def _write(process: subprocess.Popen[bytes], message: JsonObject) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerError("A helper process ended unexpectedly.", "Try again; it starts anew.") from error

    def _read_answers(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # the pipe was closed under us by close()
            for line in process.stdout:
                try:
                    answer = json.loads(line)
                    awaited = self._answers.get(answer["id"])
                except (ValueError, KeyError, TypeError):
                    continue  # not ours: a library wrote to the raw descriptor
                if awaited is not None:
                    awaited.answers.put(answer)
        for awaited in list(self._answers.values()):
            if awaited.process is process:  # not those of a process that was started since
                awaited.answers.put(None)
        for pipe in (process.stdout, process.stdin):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent to a process that ended
                    pipe.close()

    def _death(self) -> WorkerError:
        process = self._process
        code = None
        if process is not None:
            # Its pipes close a moment before it can be asked how it ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=1.0)
        if code is not None and code < 0:
            reason = f"was ended by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
        else:
            reason = f"ended with code {code}" if code is not None else "was closed"
        return WorkerError(
            f"The helper process {self._module.rsplit('.', 2)[-2]} {reason} before it answered.",
            f"Try again; if it happens twice, its log {self._log_file.name} says more.",
        )


def _error_from_json(value: JsonObject) -> EngineError:
    if value["kind"] == "ConfigError":
        return engine.errors.ConfigError([engine.errors.Problem(*problem) for problem in value["problems"]])
    if value["kind"] == "CancelledRequestError":
        return CancelledRequestError()
    known = getattr(engine.errors, value["kind"], WorkerError)
    error_class = known if isinstance(known, type) and issubclass(known, EngineError) else WorkerError
    return error_class(value["what"], value["fix"])

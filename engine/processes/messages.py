"""Messages between us and our helper processes, one JSON object per line over stdio, and the end that answers them.

    → {"id": 7, "method": "render", "params": {…}}
    ← {"id": 7, "progress": {…}}            any number of times
    ← {"id": 7, "result": {…}}              or {"id": 7, "error": {"what": …, "fix": …, "kind": "DatasetError"}}
    ← {"id": 7, "turn": true}               request 7 is worked on from here until another one's turn
    ← {"id": 7, "subject": "…"}             what request 7 works with, to be remembered if it ends the process
    ← {"ready": true}                       the worker's imports are over
    → {"cancel": 7}                         asks the handler of request 7 to end early
    → {"withdraw": 7}                       drops request 7 where it has not begun

Requests are answered one after the other, in order. A handler that yields gives its turn to other requests at each `yield`:
such requests advance side by side, one step each, in one thread. A cancel is seen at once, by a reader thread.
`json_lines` is the end that asks.
"""

import contextlib
import gc
import json
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import Queue
from typing import Any, BinaryIO

from loratory.engine import errors
from loratory.engine.errors import EngineError, ModelLimitError, WorkerError
from loratory.engine.processes.spawn import end_with_asker

JsonObject = dict[str, Any]
OnProgress = Callable[[JsonObject], None]


class CancelledRequestError(EngineError):
    """The caller asked for an early end."""

    def __init__(self) -> None:
        super().__init__("The request was stopped.", "Ask again when you need it.")


class ProcessEndedError(WorkerError):
    """The process ended before it answered.

    Args:
        exit_code: Of the process, negative for a signal; None while it is not known.
        at_fault: Whether it was working on this very request; others can be asked again.
        subject: What the request worked with, as its handler named it.
    """

    def __init__(self, what: str, fix: str, exit_code: int | None, *, at_fault: bool = True, subject: str = "") -> None:
        super().__init__(what, fix)
        self.exit_code = exit_code
        self.at_fault = at_fault
        self.subject = subject


class NotBegunError(Exception):
    """The worker is busy with one step of another request, and this request was taken back."""


def error_to_json(error: EngineError) -> JsonObject:
    """Return an error as the `error` of an answer."""
    message: JsonObject = {"kind": type(error).__name__, "what": error.what, "fix": error.fix}
    if isinstance(error, errors.ConfigError):
        message["problems"] = [list(problem) for problem in error.problems]
    return message


def error_from_json(value: JsonObject) -> EngineError:
    """Return the error of an answer, as the handler raised it."""
    if value["kind"] == "ConfigError":
        return errors.ConfigError([errors.Problem(*problem) for problem in value["problems"]])
    if value["kind"] == "CancelledRequestError":
        return CancelledRequestError()
    kind = getattr(errors, value["kind"], WorkerError)
    error_class = kind if isinstance(kind, type) and issubclass(kind, EngineError) else WorkerError
    return error_class(value["what"], value["fix"])


class _Asker:
    """The other side: what it took back, and which request it knows to be worked on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        self._writing = threading.Lock()  # guards `_out`: progress may come from threads of a handler
        self.cancelled: set[int] = set()
        self.withdrawn: set[int] = set()
        self.turn: int | None = None

    def send(self, message: JsonObject) -> None:
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        with self._writing:
            self._out.write(line)
            self._out.flush()


class Request:
    """What a handler gets in addition to its parameters."""

    def __init__(self, request_id: int, asker: _Asker, overruns: Mapping[str, Sequence[str]]) -> None:
        self._id = request_id
        self._asker = asker
        self._overruns = overruns

    def progress(self, value: JsonObject) -> None:
        """Send a part of the answer, or how far it has come."""
        self._send({"progress": value})

    def is_cancelled(self) -> bool:
        """Whether the caller no longer wants the answer; long handlers look often."""
        return self._id in self._asker.cancelled

    def work_with(self, subject: str) -> None:
        """Name what the request works with, which the asker remembers where it overruns.

        Raises:
            ModelLimitError: If it is known to overrun.
        """
        self._send({"subject": subject})
        if subject in self._overruns:
            raise ModelLimitError(*self._overruns[subject])

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Announce that it is worked on from here, where another had a turn since; answer with the error that ends it."""
        if self._asker.turn != self._id:
            self._asker.turn = self._id
            self._send({"turn": True})
        try:
            yield
        except EngineError as error:
            self.finish({"error": error_to_json(error)})
        except MemoryError:
            traceback.print_exc()
            self.finish({"error": error_to_json(WorkerError("Memory ran out.", "Choose something smaller."))})
        except Exception as error:
            # The full story is for the log; a person gets one sentence.
            traceback.print_exc()
            what = f"Something unexpected happened ({type(error).__name__})."
            self.finish({"error": error_to_json(WorkerError(what, "See its log in the server folder."))})

    def finish(self, message: JsonObject) -> None:
        """Send the last answer; a later cancel has no effect."""
        self._asker.cancelled.discard(self._id)
        self._send(message)

    def _send(self, message: JsonObject) -> None:
        self._asker.send({"id": self._id, **message})


Steps = Generator[None, None, JsonObject]  # each `yield` gives the turn away; the returned value is the result
Handler = Callable[[JsonObject, Request], "JsonObject | Steps"]


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests from stdin until it closes; to be called by the worker module.

    Stray prints of libraries go to stderr and cannot disturb the answers. The process ends with its asker.
    """
    end_with_asker()
    gc.freeze()  # the objects of the imports stay; no collection needs to look at them again
    asker = _Asker()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: Queue[JsonObject | None] = Queue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests, asker), daemon=True).start()
    running: deque[tuple[Request, Steps]] = deque()
    asker.send({"ready": True})
    while True:
        if not running or not requests.empty():
            message = requests.get()
            if message is None:
                gc.freeze()  # the interpreter would search all memory for garbage before it ends
                return
            if message["id"] in asker.withdrawn:
                asker.withdrawn.discard(message["id"])
                continue
            request = Request(message["id"], asker, message["params"].get("overruns", {}))
            with request.turn():
                answer = handlers[message["method"]](message["params"], request)
                if isinstance(answer, Generator):
                    running.append((request, answer))
                else:
                    request.finish({"result": answer})
        if running:
            request, steps = running.popleft()
            with request.turn():
                try:
                    next(steps)
                    running.append((request, steps))
                except StopIteration as end:
                    request.finish({"result": end.value})


def _read_requests(stream: BinaryIO, requests: "Queue[JsonObject | None]", asker: _Asker) -> None:
    for line in stream:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "cancel" in message:
            asker.cancelled.add(message["cancel"])
        elif "withdraw" in message:
            asker.cancelled.add(message["withdraw"])  # where it has begun meanwhile
            asker.withdrawn.add(message["withdraw"])
        else:
            requests.put(message)
    # The other side is gone: end even in the middle of a request, as its answer has no reader.
    requests.put(None)
    threading.Timer(2.0, os._exit, (0,)).start()

"""The answering end of a helper process; `engine.processes.messages` has the protocol.

Requests are answered one after the other, in order. A handler that yields gives its turn to other requests at each `yield`:
such requests advance side by side, one step each, in one thread. A cancel is seen at once, by a reader thread.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import Queue
from typing import BinaryIO, Protocol

from engine.errors import EngineError, ModelLimitError, WorkerError
from engine.processes.messages import JsonObject, error_to_json
from engine.processes.spawn import end_with_asker


class Request(Protocol):
    """What a handler gets in addition to its parameters."""

    def progress(self, value: JsonObject) -> None:
        """Send a part of the answer, or how far it has come."""

    def is_cancelled(self) -> bool:
        """Whether the caller no longer wants the answer; long handlers look often."""

    def work_with(self, subject: str) -> None:
        """Name what the request works with, which the asker remembers where it overruns.

        Raises:
            ModelLimitError: If it is known to overrun.
        """


Steps = Generator[None, None, JsonObject]  # each `yield` gives the turn away; the returned value is the result
Handler = Callable[[JsonObject, Request], "JsonObject | Steps"]


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests from stdin until it closes; to be called by the worker module.

    Stray prints of libraries go to stderr and cannot disturb the answers. The process ends with its asker.
    """
    end_with_asker()
    asker = _Asker(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: Queue[JsonObject | None] = Queue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests, asker), daemon=True).start()
    running: deque[tuple[_ServedRequest, Steps]] = deque()
    asker.send({"ready": True})
    while True:
        if not running or not requests.empty():
            message = requests.get()
            if message is None:
                return
            request = _ServedRequest(int(message["id"]), asker, message["params"].get("overruns", ()))
            if request.is_withdrawn():
                continue
            request.take_turn()
            with _answering_errors(request):
                answer = handlers[message["method"]](message["params"], request)
                if isinstance(answer, Generator):
                    running.append((request, answer))
                else:
                    request.finish({"result": answer})
        if running:
            request, steps = running.popleft()
            request.take_turn()
            with _answering_errors(request):
                try:
                    next(steps)
                    running.append((request, steps))
                except StopIteration as end:
                    request.finish({"result": end.value})


@contextlib.contextmanager
def _answering_errors(request: "_ServedRequest") -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        request.finish({"error": error_to_json(error)})
    except MemoryError:
        traceback.print_exc()
        request.finish({"error": error_to_json(WorkerError("Memory ran out.", "Choose something smaller."))})
    except Exception as error:
        # The full story is for the log; a person gets one sentence.
        traceback.print_exc()
        what = f"Something unexpected happened ({type(error).__name__})."
        request.finish({"error": error_to_json(WorkerError(what, "Its log in the server folder says more."))})


class _Asker:
    """The other side: what it took back, and which request it knows to be worked on."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._writing = threading.Lock()  # guards `_out`: progress may come from threads of a handler
        self.cancelled: set[int] = set()
        self.withdrawn: set[int] = set()
        self.turn: int | None = None

    def send(self, message: JsonObject) -> None:
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        with self._writing:
            self._out.write(line)
            self._out.flush()


class _ServedRequest:
    def __init__(self, request_id: int, asker: _Asker, overruns: Sequence[Sequence[str]]) -> None:
        self._id = request_id
        self._asker = asker
        self._overruns = {subject: (what, fix) for subject, what, fix in overruns}

    def progress(self, value: JsonObject) -> None:
        self._send({"progress": value})

    def is_cancelled(self) -> bool:
        return self._id in self._asker.cancelled

    def work_with(self, subject: str) -> None:
        self._send({"subject": subject})
        if subject in self._overruns:
            raise ModelLimitError(*self._overruns[subject])

    def is_withdrawn(self) -> bool:
        """Whether the asker took it back before it began."""
        if self._id not in self._asker.withdrawn:
            return False
        self._asker.withdrawn.discard(self._id)
        return True

    def take_turn(self) -> None:
        """Announce that it is worked on from here; said once, where no other had a turn since."""
        if self._asker.turn != self._id:
            self._asker.turn = self._id
            self._send({"turn": True})

    def finish(self, message: JsonObject) -> None:
        """Send the last answer; a later cancel has no effect."""
        self._asker.cancelled.discard(self._id)
        self._send(message)

    def _send(self, message: JsonObject) -> None:
        self._asker.send({"id": self._id, **message})


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

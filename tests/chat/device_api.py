"""A stand-in for the device API of ZeroGPU: takes exactly the requests of `spaces` 0.51 (zero/api.py), and lends no GPU."""

import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

_ALLOWED = {
    "/startup-report": (set(), set()),
    "/schedule": ({"cgroupPath", "taskId", "enableQueue", "tokenVersion"}, {"durationSeconds", "gpuSize", "token"}),
    "/allow": ({"allowToken", "pid"}, set()),
    "/release": ({"allowToken", "fail"}, set()),
}  # required and optional parameters


class Refusal(NamedTuple):
    """How a request for a GPU is refused."""

    status: int
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None


NO_QUOTA = Refusal(
    429, {"left": 12, "wait": "PT3H5M"}, {"X-Authenticated": "regular", "X-Approve-Result": "quota-exceeded"}
)
BUSY = Refusal(503)


class DeviceApi:
    """Serves on a port of this machine while it is entered.

    Attributes:
        requests: Path and parameters of every request.
        refusal: Of the next requests for a GPU; None grants them.
        queues: Whether a GPU has to be waited for; until `free` is set.
        children: Processes that may use the GPU.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.mistakes: list[str] = []
        self.refusal: Refusal | None = None
        self.queues = False
        self.free = threading.Event()
        self.children: list[int] = []
        self._lent: dict[str, str] = {}  # task by token
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                api._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> "DeviceApi":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a Space on ZeroGPU."""
        port = self._server.server_address[1]
        return {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{port}",
            "ZEROGPU_V2": "true",
        }

    def parameters_of(self, path: str) -> list[dict[str, str]]:
        """Return the parameters of all requests of a path."""
        return [values for request_path, values in self.requests if request_path == path]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        settings = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        required, optional = _ALLOWED.get(parts.path, ({"no such path"}, set()))
        if not required <= settings.keys() <= required | optional or int(request.headers.get("Content-Length") or 0):
            self.mistakes.append(request.path)
            _send(request, 422)
            return
        self.requests.append((parts.path, settings))
        by_path: dict[str, Callable[[BaseHTTPRequestHandler, dict[str, str]], None]] = {
            "/startup-report": lambda request, _: _send(request, 200), "/schedule": self._schedule, "/allow": self._allow,
            "/release": self._release,
        }  # fmt: skip
        by_path[parts.path](request, settings)

    def _schedule(self, request: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
        if not parameters["taskId"].isdigit() or (parameters["enableQueue"], parameters["tokenVersion"]) != (
            "true",
            "2",
        ):
            self.mistakes.append(request.path)
        if not 1 <= int(parameters["durationSeconds"]) <= 120:
            self.mistakes.append(request.path)
        if self.refusal is not None:
            _send(request, self.refusal.status, self.refusal.body, self.refusal.headers)
            return
        token = uuid.uuid4().hex
        self._lent[token] = parameters["taskId"]
        idle = bool(self.children) and _lives(self.children[-1])
        grant = {"idle": idle, "nvidiaIndex": 0, "nvidiaUUID": "MIG-stand-in", "allowToken": token}
        if not self.queues:
            _send(request, 200, grant)
            return
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("X-Queuing-Reason", "node")
        request.send_header("Connection", "close")
        request.end_headers()
        while not self.free.wait(0.1):
            request.wfile.write(b"event: ping\n\n")
            request.wfile.flush()
        request.wfile.write(f"event: succeeded\ndata: {json.dumps(grant)}\n\n".encode())
        request.close_connection = True

    def _allow(self, request: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
        known = parameters["allowToken"] in self._lent and _lives(int(parameters["pid"]))
        if known:
            self.children.append(int(parameters["pid"]))
        _send(request, 200 if known else 404)

    def _release(self, request: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
        _send(request, 200 if self._lent.pop(parameters["allowToken"], None) else 404)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _send(
    request: BaseHTTPRequestHandler, status: int, body: object = None, headers: Mapping[str, str] | None = None
) -> None:
    content = json.dumps(body).encode()
    request.send_response(status)
    content_headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    for name, value in {**content_headers, **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)

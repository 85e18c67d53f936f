"""A part of the Hugging Face Hub on loopback: routes, accounts, and faults to switch on. Each module beside it answers for one part."""

import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

from loratory.engine.accounts.listener import bound_socket

TOKEN = "hf_CanaryThatMustNeverBeSeenAnywhere42"
ACCOUNT = "ada"
NAME = r"[^/]+/[^/]+"  # of a repository or bucket, in routes

Answer = tuple[Any, ...]  # status, value, and headers where there are any


@dataclass
class Fault:
    """An error at a step, so many times.

    A status answers instead of the Hub; `reset` cuts the connection before anything is done, `lost` after it was done.
    """

    step: str  # one of the routes
    what: int | Literal["reset", "lost"]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class HubRequest(NamedTuple):
    """A request."""

    step: str
    path: str
    match: re.Match[str]  # of the route
    query: dict[str, list[str]]
    body: bytes
    method: str
    headers: Message
    token: str

    @property
    def name(self) -> str:
        """What the first group of the route found."""
        return self.match[1]

    def json(self) -> Any:
        """Return what was sent."""
        return json.loads(self.body)


class HubServer:
    """Serves on loopback; use as a context manager.

    A step named in `routes` is answered by the method of its name, one request at a time.

    Attributes:
        faults: Taken one after the other, each as often as `times`.
        requests: How often each step was asked for.
        accounts: Who may ask, by token.
    """

    routes: ClassVar[list[tuple[str, str]]]  # patterns of paths; the first that matches holds
    open_steps: ClassVar[frozenset[str]] = frozenset()  # that need no account

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.accounts = {TOKEN: ACCOUNT}
        self._lock = threading.Lock()  # guards all of it: a request is answered as a whole
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # head and body in one packet: the other side waits 40 ms between two

            def do_GET(self) -> None:
                hub._serve(self)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                pass

        self._reserved = bound_socket("127.0.0.1", 0)  # kept: where it has ended, no other server comes to answer
        self._server = ThreadingHTTPServer(self._reserved.getsockname(), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_all(self, monkeypatch: pytest.MonkeyPatch, *, xet: bool = False) -> None:
        """Let the Hub's library in this process ask this server, in plain HTTP unless it has a storage client."""
        template = self.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        request, fault = self._begin(handler)
        if fault is not None and fault.what == "reset":
            _cut(handler)
            return
        if fault is not None and isinstance(fault.what, int):
            _send(handler, fault.what, {"error": f"refused with {request.token or TOKEN}"}, fault.headers)
            return
        answer = self._refusal(request)
        if answer is None:
            with self._lock:
                answer = getattr(self, f"_{request.step}")(request)
        if fault is not None:
            _cut(handler)
        else:
            _send(handler, *answer)

    def _begin(self, handler: BaseHTTPRequestHandler) -> tuple[HubRequest, Fault | None]:
        parts = urlsplit(handler.path)
        path = unquote(parts.path)
        step, match = next((step, match) for pattern, step in self.routes if (match := re.fullmatch(pattern, path)))
        with self._lock:
            self.requests[step] += 1
            fault = next((fault for fault in self.faults if fault.step == step and fault.times > 0), None)
            if fault is not None:
                fault.times -= 1
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length // 2 if fault is not None and fault.what == "reset" else length)
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        return HubRequest(
            step, path, match, parse_qs(parts.query), body, handler.command, handler.headers, token
        ), fault

    def _refusal(self, request: HubRequest) -> Answer | None:
        """Refuse requests without a valid token."""
        if request.step in self.open_steps or request.token in self.accounts:
            return None
        message = "Invalid credentials in Authorization header"
        return 401, {"error": message}, {"X-Error-Message": message}

    def _whoami(self, request: HubRequest) -> Answer:
        return 200, {"type": "user", "name": self.accounts[request.token], "orgs": [{"name": "lab"}]}

    def _other(self, request: HubRequest) -> Answer:
        return 404, {"error": f"there is no {request.path} here", "code": ""}


def error_answer(code: str, message: str = "Repository not found", status: int = 404) -> Answer:
    """Return an answer with an error code of the Hub."""
    return status, {"error": message, "code": code}


def log_events(lines: list[str]) -> Answer:
    """Return lines of a log as the Hub streams them."""
    events = (json.dumps({"data": line, "timestamp": "2026-01-01T00:00:00.000Z"}) for line in lines)
    text = "".join(f"data: {event}\n\n" for event in events)
    return 200, text.encode(), {"Content-Type": "text/event-stream"}


def sha256(content: bytes) -> str:
    """Name of a large file."""
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    """Name of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _cut(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection instead of closing it."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def _send(handler: BaseHTTPRequestHandler, status: int, value: object, headers: dict[str, str] | None = None) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    code = {"X-Error-Code": value["code"]} if isinstance(value, dict) and value.get("code") else {}
    handler.send_response(status)
    for name, text in {"Content-Type": "application/json", **code, **(headers or {})}.items():
        handler.send_header(name, text)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)

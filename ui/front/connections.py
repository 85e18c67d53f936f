"""The servers of a lab: how many connections a network may have open, how slowly a request may arrive; and of a problem."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from loratory.engine.accounts.listener import Listener
from loratory.engine.accounts.throttle import network_of
from loratory.engine.errors import EngineError, HubUnreachableError
from loratory.engine.space.environment import HUB
from loratory.ui.front.forms import page, problem_box

_MOST_OF_A_NETWORK = 256  # a browser has six at most, and an institute may have one address
_TIMEOUT_SECONDS = 20.0
_SLOWEST_BYTES_PER_SECOND = 4_000  # of a body that takes longer
_OPEN_FILES = 8_192
_RETRY_SECONDS = 60.0

_Peer = tuple[str, int]


class BoundedSocket(socket.socket):
    """Accepts so many connections of a network; one more replaces the oldest that waits for its client."""

    _answering: frozenset[_Peer] | set[_Peer] = frozenset()
    _open: dict[_Peer, tuple[str, socket.socket]]

    @classmethod
    def wrap(cls, listener: socket.socket, answering: set[_Peer]) -> "BoundedSocket":
        """Return a bound socket that counts; `answering` has the clients that wait for the server."""
        wrapper = cls(fileno=listener.detach())
        wrapper._answering, wrapper._open = answering, {}
        return wrapper

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, before its TLS begins."""
        connection, address = super().accept()
        network = network_of(address[0])
        self._open = {peer: entry for peer, entry in self._open.items() if entry[1].fileno() >= 0}
        neighbours = [peer for peer, (other, _) in self._open.items() if other == network]
        if len(neighbours) >= _MOST_OF_A_NETWORK:
            waiting = next((peer for peer in neighbours if peer not in self._answering), None)
            if waiting is None:
                connection.close()
                raise ConnectionAbortedError("too many connections")  # a server continues with the next one
            with suppress(OSError):  # the client has closed it
                self._open.pop(waiting)[1].shutdown(socket.SHUT_RDWR)  # its transport then closes it
        self._open[address[:2]] = network, connection
        return connection, address


class TimedConnection(H11Protocol):
    """Closes a connection whose client does not send its request in time; uvicorn 0.54 waits forever."""

    def __init__(self, answering: set[_Peer], **options: Any) -> None:
        super().__init__(**options)
        self._answering = answering
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._note_state()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY:
            self._deadline += len(data) / _SLOWEST_BYTES_PER_SECOND
            self._deadline = min(self._deadline, self.loop.time() + _TIMEOUT_SECONDS)
        self._note_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_state()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        self._answering.discard(self.client or ("", 0))

    def _note_state(self) -> None:
        """Wait for the client, unless it waits for the server."""
        is_whole = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        if is_whole and self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
            self._answering.add(self.client or ("", 0))
            return
        self._answering.discard(self.client or ("", 0))
        if self._timer is None:
            self._deadline = self.loop.time() + _TIMEOUT_SECONDS
            self._timer = self.loop.call_at(self._deadline, self._end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:  # by the server
            self._deadline = now + _TIMEOUT_SECONDS
        if self._deadline > now:
            self._timer = self.loop.call_at(self._deadline, self._end)
        else:
            self.transport.abort()  # closing it would wait for the client again


def bounded_server(
    app: ASGIApp, listener: socket.socket, certificate: Path | None, key: Path | None, grace_seconds: int
) -> tuple[uvicorn.Server, socket.socket]:
    """Return a server, and the socket to run it on. Only with a certificate do clients connect to it themselves."""
    _allow_open_files()
    answering: set[_Peer] = set()
    protocol: Callable[..., TimedConnection] = partial(TimedConnection, answering)
    config = uvicorn.Config(
        app,
        loop="asyncio",  # another one would accept connections without asking the socket
        http=protocol,  # type: ignore[arg-type]  # it is called alone
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the gate reads the one that our own proxy wrote
        timeout_graceful_shutdown=grace_seconds,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return uvicorn.Server(config), listener if certificate is None else BoundedSocket.wrap(listener, answering)


def _allow_open_files() -> None:
    """Allow more connections of many networks, or through a proxy, than the 1,024 open files that are usual."""
    with suppress(ImportError, OSError, ValueError):  # not on Windows; what the system does not allow stays
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        if 0 <= soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def serve_problem(error: EngineError, listener: Listener) -> None:
    """Answer every request with what keeps a Space from starting, until it is stopped, or for a minute where waiting may help.

    The page of a Space whose server ends at once shows no reason.

    Raises:
        DeviceError: If the port cannot be bound.
    """
    may_pass = isinstance(error, HubUnreachableError)
    retry = f"<p>Retrying every {_RETRY_SECONDS:g} s.</p>" if may_pass else ""
    plain = page("Loratory cannot start", problem_box(str(error)) + retry)
    policy = f"{plain.headers['Content-Security-Policy']}; frame-ancestors {HUB}"
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    answer = HTMLResponse(plain.body, headers=headers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(scope, receive, send)

    config = uvicorn.Config(
        app, loop="asyncio", lifespan="off", log_level="warning", access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    if may_pass:
        timer = threading.Timer(_RETRY_SECONDS, lambda: setattr(server, "should_exit", True))
        timer.daemon = True
        timer.start()
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener.open()])

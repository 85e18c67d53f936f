"""An endpoint on this machine that answers as a test wants, and notes what it is asked."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = {"question": "How many screws?", "answer": "It has 7 screws."}


def completion(content: Any, finish: str = "stop", usage: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a chat completion whose text is this, as JSON where it is not text."""
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage or {"prompt_tokens": 100, "completion_tokens": 20}}


class LocalEndpoint:
    """Answers each request with the next reply; the last one again and again.

    Attributes:
        replies: Each is a status with a body (JSON where it is not bytes), or a function that gets the handler.
        requests: The JSON of each request.
        keys: The Authorization of each.
    """

    def __init__(self, url: str, replies: list[Any]) -> None:
        self.url = url
        self.replies = replies
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.hosts: list[str | None] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(request)
        self.keys.append(handler.headers.get("Authorization"))
        self.paths.append(handler.path)
        self.hosts.append(handler.headers.get("Host"))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(reply):
            reply(handler)
        else:
            status, body = reply
            send(handler, status, body if isinstance(body, bytes) else json.dumps(body).encode())


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """Send a whole response."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def serving(*replies: Any) -> Iterator[LocalEndpoint]:
    """Serve an endpoint with these replies; good ones where there are none."""
    endpoint = LocalEndpoint("", list(replies) or [(200, completion(GOOD))])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with contextlib.suppress(ConnectionError):
                endpoint.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


Reply = Callable[[BaseHTTPRequestHandler], None]

"""The page of a Space that cannot start; apart from all that may be what keeps it from starting."""

import contextlib

import uvicorn
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from engine.accounts.lab import Listener
from engine.errors import EngineError
from engine.space.environment import HUB
from ui.front.forms import page, problem_box


def serve_problem(error: EngineError, listener: Listener) -> None:
    """Answer every request with what keeps a Space from starting, until it is stopped.

    A server that ends at once is started over and over, and the page of the Space says nothing of the reason.

    Raises:
        DeviceError: If the port cannot be bound.
    """
    answer = page("Loratory cannot start", problem_box(str(error)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _framed(answer)(scope, receive, send)

    config = uvicorn.Config(
        app, loop="asyncio", lifespan="off", log_level="warning", access_log=False, server_header=False
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener.open()])


def _framed(answer: HTMLResponse) -> HTMLResponse:
    policy = f"{answer.headers['Content-Security-Policy']}; frame-ancestors {HUB}"
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return HTMLResponse(answer.body, headers=headers)

"""The page of a Space that cannot start; apart from all that may be what keeps it from starting."""

import contextlib
import threading

import uvicorn
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from engine.accounts.listener import Listener
from engine.errors import EngineError, HubUnreachableError
from engine.space.environment import HUB
from ui.front.forms import page, problem_box

_TRIES_AGAIN_SECONDS = 60.0


def serve_problem(error: EngineError, listener: Listener) -> None:
    """Answer every request with what keeps a Space from starting, until it is stopped, or for a minute where waiting may help.

    The page of a Space whose server ends at once shows no reason.

    Raises:
        DeviceError: If the port cannot be bound.
    """
    may_pass = isinstance(error, HubUnreachableError)
    retry = f"<p>Retrying every {_TRIES_AGAIN_SECONDS:g} s.</p>" if may_pass else ""
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
        timer = threading.Timer(_TRIES_AGAIN_SECONDS, lambda: setattr(server, "should_exit", True))
        timer.daemon = True
        timer.start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener.open()])

"""Who may ask: programs on this computer. No page of another site, whatever name it gave this computer."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.serve.address import LOOPBACK_HOSTS
from engine.serve.contract import ErrorBody

_FOREIGN = "This endpoint answers programs on this computer, and no page of another site."


class LocalProgramsOnly:
    """Refuses what a browser may send on behalf of a page that is not ours.

    A browser names the page in `Origin` and `Sec-Fetch-Site`; a page whose own name was pointed at this computer (DNS
    rebinding) is found by `Host`. A form can send no JSON, so a body must say that it is JSON. No header ever allows
    another origin to read an answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            return
        refusal = _refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send)


def _refusal(method: str, headers: Headers) -> JSONResponse | None:
    host = headers.get("host", "")
    if _host_name(host) not in LOOPBACK_HOSTS:
        return _refuse(403, "This endpoint is reached as 127.0.0.1 or localhost only.", "host_not_allowed")
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return _refuse(403, _FOREIGN, "origin_not_allowed")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return _refuse(403, _FOREIGN, "origin_not_allowed")
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _refuse(415, "Send the body as application/json.", "unsupported_media_type")
    return None


def _refuse(status: int, message: str, code: str) -> JSONResponse:
    return JSONResponse(ErrorBody(message, "invalid_request_error", code=code).as_json(), status)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

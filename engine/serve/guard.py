"""Accept requests of programs and pages on this computer; refuse pages of other sites, under any host name."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.errors import DeviceError
from loratory.engine.serve.contract import RefusedRequestError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def refuse_unless_usable(host: str, port: int) -> None:
    """Check an address before anything is started.

    Raises:
        DeviceError: If other computers could reach it, or the port is invalid or in use.
    """
    if host not in LOOPBACK_HOSTS:
        fix = "Add --lab, or keep 127.0.0.1 and reach it from elsewhere through an SSH tunnel."
        raise DeviceError(f"Loratory does not listen on {host} without accounts: anyone could use it there.", fix)
    if not 0 < port < 65536:
        raise DeviceError(f"Invalid port {port}.", "Choose one between 1 and 65535, such as 7860.")
    bound_socket(host, port).close()


def with_headers(send: Send) -> Send:
    """Add security headers to answers; a policy that an answer already has is kept."""

    async def send_restricted(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            # For answers that are not a page.
            headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "SAMEORIGIN"
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return send_restricted


@dataclass(frozen=True)
class LocalProgramsOnly:
    """Refuses requests that a browser sends for pages of other sites.

    Browsers send the page's site in `Origin` and `Sec-Fetch-Site`; a host name that resolves to this computer (DNS
    rebinding) is detected by `Host`. Forms cannot send JSON, so a body needs its content type. No answer may be read by
    another origin.
    """

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            return
        refusal = _refusal(scope["method"], Headers(scope=scope))
        answer = self.app if refusal is None else refusal.response()
        await answer(scope, receive, with_headers(send))


@dataclass(frozen=True)
class OwnPageOnly:
    """The same for Loratory's page, which links of other sites may open.

    Proxy headers are ignored, because any page can send them; behind a proxy, `GRADIO_ROOT_PATH` sets the address.
    """

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # A browser opens the page in a tab, where the linking site cannot read it.
        is_navigation = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        opens_page = scope["type"] == "http" and scope["method"] == "GET" and is_navigation
        foreign = None
        if not _is_called_by_its_name(headers):
            foreign = "Loratory is reached as 127.0.0.1 or localhost only. Open it under one of these names."
        elif not opens_page and not _comes_from_itself(headers):
            foreign = (
                "Loratory answers its own page and programs on this computer. A page of another site may not ask it."
            )
        if foreign is None:
            await self.app(_without_forwarded(scope), receive, with_headers(send))
        elif scope["type"] == "http":
            await PlainTextResponse(foreign, 403)(scope, receive, with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})


def _without_forwarded(scope: Scope) -> Scope:
    prefixes = (b"x-forwarded-", b"x-gradio-server", b"forwarded")
    own = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(prefixes)]
    plain = {"http": "http", "websocket": "ws"}[scope["type"]]  # uvicorn trusts X-Forwarded-Proto
    return {**scope, "headers": own, "scheme": plain}


def _is_called_by_its_name(headers: Headers) -> bool:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname in LOOPBACK_HOSTS
    except ValueError:
        return False


def _comes_from_itself(headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host', '')}":
        return False
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _refusal(method: str, headers: Headers) -> RefusedRequestError | None:
    if not _is_called_by_its_name(headers):
        message = "This endpoint is reached as 127.0.0.1 or localhost only."
        return RefusedRequestError(message, code="host_not_allowed", status=403)
    if not _comes_from_itself(headers):
        message = "This endpoint answers programs on this computer, and no page of another site."
        return RefusedRequestError(message, code="origin_not_allowed", status=403)
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return RefusedRequestError("Send the body as application/json.", code="unsupported_media_type", status=415)
    return None

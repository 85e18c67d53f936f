"""The entry to a lab: authenticates each request and passes it to the page of its user."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratory.engine.accounts.lab import PublicAddress
from loratory.engine.accounts.people import Action, Person, may
from loratory.engine.accounts.sessions import SignedIn
from loratory.engine.errors import EngineError
from loratory.ui.addresses import opens_page, parse_address

if TYPE_CHECKING:
    from loratory.ui.front.pages import PersonPages

COOKIE = "__Host-loratory"  # browsers take it from https alone, for this host alone
SIGN_IN = "/sign-in"
AGENTS = "/mcp"
REQUESTED_COOKIE = "__Host-loratory-requested"  # the address that was opened before signing in
PROXY_USER = "proxy_user"  # in the state of a request: the name from a trusted proxy
_RECHECK_SECONDS = 2.0  # at the session of an answer that takes long
_SAFE_METHODS = ("GET", "HEAD")
_NO_SITE = "'none'"
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms of our own would come from the origin null
    "Strict-Transport-Security": "max-age=31536000",
}  # fmt: skip
_FRAMES = ("iframe", "frame", "embed", "object", "fencedframe")
_FORWARDED_HEADERS = (b"x-forwarded-", b"x-gradio-", b"x-real-ip", b"forwarded")

# What the page asks for; a route that a new Gradio adds is not offered. Ids are Gradio's own, of one person's page.
_OFFERED_READS = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(static|assets|svelte)/[^?]+"
    r"|/gradio_api/(theme\.css|startup-events|queue/data|upload_progress|heartbeat/[\w-]+|file=.+)"
)
_UPLOAD = "/gradio_api/upload"
_OFFERED_WRITES = re.compile(r"/gradio_api/(queue/join/?|run/predict/?|component_server/?|upload|cancel|reset/?)")


def is_offered(path: str) -> bool:
    """Return whether requests for a path may reach a person's page."""
    return _OFFERED_READS.fullmatch(path) is not None or _OFFERED_WRITES.fullmatch(path) is not None


class Welcome(NamedTuple):
    """What people who have not signed in see at `/`, and all people in a frame of one other site."""

    app: ASGIApp  # answers `/` and its own paths
    paths: frozenset[str]
    framed_by: str  # origin of the site whose pages may show it in a frame


class NamedByProxy(NamedTuple):
    """How a proxy names people, where it is trusted to."""

    header: str  # in which it does; lower case
    # Returns whether a person's session may be used under a name that the proxy gives.
    may_continue: Callable[[Person, str], bool]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Authenticates each request to what a lab serves.

    A request is answered where it comes to the lab's own name, from the lab's own page, asks for something that the page
    needs, and carries the cookie of a session. Whatever else arrives gets 401, 403, 404, 421 or the sign-in page.
    """

    address: PublicAddress  # the one that browsers use
    # Returns whose session a token is; called at each request, and every two seconds while an answer continues.
    find_session: Callable[[str], SignedIn | None]
    front: ASGIApp  # answers `front_paths`, for people who have not signed in
    front_paths: frozenset[str]  # of the sign-in page and what belongs to it
    pages: "PersonPages"
    behind_proxy: bool  # whether all requests come through a proxy of ours, which reports where from
    names: NamedByProxy | None = None  # how that proxy names people; None where it does not
    welcome: Welcome | None = None  # what people without an account see; None where they have to sign in
    agents: ASGIApp | None = (
        None  # answers `/mcp` for requests with a token, which no browser sends on its own; None without
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.front(scope, receive, send)
            return
        request = Request(scope)
        scope = self._with_trusted_headers(scope, request.headers)
        welcome = self.welcome if await self._is_for_strangers(request) else None
        send = _with_security_headers(send) if welcome is None else _with_security_headers(send, welcome.framed_by)
        refusal = self._refuse_foreign(request)
        if self.agents is not None and scope["path"] == AGENTS and self._is_ours(request):
            await self.agents(scope, receive, send)
            return
        if refusal is None and self.names is not None:
            scope = await self._with_named_account(request, scope, self.names)
            request = Request(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif welcome is not None:
            await welcome.app(scope, receive, send)
        elif scope["path"] in self.front_paths:
            await self.front(scope, receive, send)
        else:
            await self._answer_person(request, scope, receive, send)

    async def _session_of(self, request: Request) -> SignedIn | None:
        token = request.cookies.get(COOKIE, "")
        return await asyncio.to_thread(self.find_session, token) if token else None

    async def _answer_person(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        signed_in = await self._session_of(request)
        if signed_in is None:
            await _require_sign_in(request)(scope, receive, send)
            return
        person = signed_in.person
        if not self._is_offered(request, person):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return
        try:
            page = await self.pages.app_for(person)
        except EngineError as error:
            await PlainTextResponse(str(error), 503)(scope, receive, send)
            return
        await self._while_signed_in(request.cookies[COOKIE], person, page(scope, receive, send))

    async def _is_for_strangers(self, request: Request) -> bool:
        """Return whether the welcome page answers a request: `/` without an account, and in a frame for everyone."""
        path = request.scope["path"]
        if self.welcome is None or path in self.welcome.paths:
            return self.welcome is not None
        if path != "/" or request.method not in _SAFE_METHODS:
            return False
        # A frame of another site has no cookie of a session. Where one came with it, it still shows no person's page.
        if request.headers.get("sec-fetch-dest") in _FRAMES:
            return True
        return await self._session_of(request) is None

    def _is_ours(self, request: Request) -> bool:
        """Return whether a request comes to the lab's own name, and from no page of another site."""
        headers, own = request.headers, self.address
        return headers.getlist("host") == [own.host] and not {*headers.getlist("origin")} - {own.origin}

    def _refuse_foreign(self, request: Request) -> Response | None:
        headers, is_root = request.headers, request.scope["path"] == "/" and request.method in _SAFE_METHODS
        if headers.getlist("host") != [self.address.host]:
            # Hugging Face checks whether the server answers, under another host name.
            status = 200 if is_root and self.welcome is not None else 421
            return PlainTextResponse(f"This lab is reached as {self.address.origin}.", status)
        if not self._is_ours(request):
            return PlainTextResponse("Requests from pages of other sites are refused.", 403)
        site = headers.get("sec-fetch-site", "same-origin")
        if request.method not in _SAFE_METHODS:
            is_own = site == "same-origin" and ("origin" in headers or "sec-fetch-site" in headers)
            refusal = PlainTextResponse("Requests that change data must come from the lab's own page.", 403)
            return None if is_own else refusal
        is_shown = _opens(headers, "document") or (self.welcome is not None and is_root and _opens(headers, "iframe"))
        if site not in ("same-origin", "none") and not is_shown:
            return PlainTextResponse("Requests from pages of other sites are refused.", 403)
        return None

    def _is_offered(self, request: Request, person: Person) -> bool:
        path = request.url.path if request.scope.get("root_path") else request.scope["path"]
        routes = _OFFERED_READS if request.method in _SAFE_METHODS else _OFFERED_WRITES
        if routes.fullmatch(path) is None and not opens_page(request.scope):
            return False
        if path == _UPLOAD and not may(person, Action.USE_OWN_DATA):
            return False
        _, is_file, name = path.partition("/gradio_api/file=")
        if is_file and not self.pages.may_read_file(person, name):
            return False
        uploads = request.query_params.getlist("upload_id")
        return all(self.pages.owns_upload(person, upload_id) for upload_id in uploads)

    async def _while_signed_in(self, token: str, person: Person, answer: Awaitable[None]) -> None:
        """Continue an answer for as long as the session lasts and the person's role is the same."""
        work = asyncio.ensure_future(answer)
        try:
            while not (await asyncio.wait({work}, timeout=_RECHECK_SECONDS))[0]:
                now = await asyncio.to_thread(self.find_session, token)
                if now is None or now.person.role != person.role:
                    return
            await work
        finally:
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work

    async def _with_named_account(self, request: Request, scope: Scope, names: NamedByProxy) -> Scope:
        """Remove the proxy's header from a request, and a session cookie of another user."""
        values = request.headers.getlist(names.header)
        name = values[0] if len(values) == 1 else ""  # of two, one is a client's
        dropped_headers = {names.header.encode()}
        signed_in = await self._session_of(request)
        if signed_in is not None and not await asyncio.to_thread(names.may_continue, signed_in.person, name):
            dropped_headers.add(b"cookie")
        headers = [(key, value) for key, value in scope["headers"] if key.lower() not in dropped_headers]
        return {**scope, "headers": headers, "state": {**scope.get("state", {}), PROXY_USER: name}}

    def _with_trusted_headers(self, scope: Scope, headers: Headers) -> Scope:
        """Return a request with the scheme and host of the lab, and nothing that a client claims about its way here."""
        client = scope.get("client")
        if self.behind_proxy:
            # Our proxy appends what it saw, some to the header and some as another one; what a client claimed comes before it.
            last = ",".join(headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
            client = (last or "unknown", 0)
        own = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(_FORWARDED_HEADERS)]
        return {**scope, "headers": own, "scheme": "https", "client": client}


def _opens(headers: Headers, where: str) -> bool:
    """Return whether a browser opens a page in a tab, or in a frame, by a link of another site, which sees nothing of it."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == where


def _require_sign_in(request: Request) -> Response:
    path, is_html = request.scope["path"], "text/html" in request.headers.get("accept", "")
    if request.method != "GET" or not is_html or not (path == "/" or opens_page(request.scope)):
        return PlainTextResponse("Sign in first.", 401)
    answer = RedirectResponse(SIGN_IN, 303)
    answer.set_cookie(REQUESTED_COOKIE, quote(path), 600, secure=True, httponly=True, samesite="lax")
    return answer


def requested_address(request: Request) -> str:
    """Return the address that a person opened before they signed in; `/` without one."""
    path = unquote(request.cookies.get(REQUESTED_COOKIE, ""))
    return path if parse_address(path)[0] else "/"


def _with_security_headers(send: Send, framed_by: str = _NO_SITE) -> Send:
    """Add the headers that limit what browsers do with an answer; a content security policy that it has stays.

    Pages of the origin `framed_by` may show it in a frame.
    """

    async def send_hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            rules = map(str.strip, headers.get("Content-Security-Policy", "default-src 'none'").split(";"))
            others = [rule for rule in rules if not rule.startswith("frame-ancestors")]
            headers["Content-Security-Policy"] = "; ".join([*others, f"frame-ancestors {framed_by}"])
            headers.update(_SECURITY_HEADERS)
            if framed_by == _NO_SITE:
                headers["X-Frame-Options"] = "DENY"
            else:  # this older header names no sites
                del headers["X-Frame-Options"]
            for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"):
                del headers[name]
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_hardened

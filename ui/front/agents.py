"""What agents use of a lab: its tools at `/mcp`, for requests with a token, and the part of the account page that makes tokens."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from loratory.engine.accounts.access_tokens import SCOPES, AccessTokens
from loratory.engine.accounts.people import Person
from loratory.engine.errors import EngineError
from loratory.engine.quantities import ago
from loratory.ui.front.account import ACCOUNT
from loratory.ui.front.forms import PlainPages, page, problem_box, read_form
from loratory.ui.front.forms import field as input_field
from loratory.ui.front.gate import AGENTS
from loratory.ui.services import Services

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from loratory.engine.interface.agents import AgentAccess

_TOKEN, _REVOKE = f"{ACCOUNT}/token", f"{ACCOUNT}/token/revoke"


@dataclass
class AgentEndpoint:
    """Answers agents in the name of people."""

    tokens: AccessTokens
    services_of: Callable[[Person], Services]
    close_services: Callable[[Services], None]
    _services: dict[str, tuple[str, Services]] = field(default_factory=dict)  # with the role, by name
    _lock: threading.Lock = field(default_factory=threading.Lock)  # guards `_services`

    def __post_init__(self) -> None:
        from loratory.engine.interface.agents import AgentServer

        self.server = AgentServer(self._access)
        # Each request is complete in itself: it is authenticated, and answered with one JSON value.
        self._app = self.server.streamable_http_app(
            streamable_http_path=AGENTS, stateless_http=True, json_response=True
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that has a token; the gate has checked the host."""
        kind, _, token = Request(scope).headers.get("authorization", "").partition(" ")
        access = await asyncio.to_thread(self.tokens.find, token.strip()) if kind.lower() == "bearer" else None
        if access is None:
            answer = PlainTextResponse("This needs a token, which people make on their account page.", 401)
            answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        await self._app({**scope, "state": {**scope.get("state", {}), "agent": access}}, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve; at the end, free what agents loaded."""
        async with self.server.session_manager.run():
            yield
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End what was started for agents; runs continue."""
        self.server.close()
        for _, services in self._services.values():
            self.close_services(services)

    def _access(self, ctx: "Context") -> "AgentAccess":
        from loratory.engine.interface.agents import AgentAccess
        from loratory.engine.interface.workspace import Workspace

        person, scopes = ctx.request_context.request.state.agent  # type: ignore[union-attr]
        with self._lock:
            role, services = self._services.get(person.name, ("", None))
            if services is None or role != person.role:
                if services is not None:
                    self.close_services(services)
                services = self.services_of(person)
                self._services[person.name] = person.role, services
        workspace = Workspace(services.home, services.inspector, services.hardware.refresh)
        return AgentAccess(workspace, scopes, person, services.log)


@dataclass(frozen=True)
class TokenPages(PlainPages):
    """Making and revoking tokens, on the account page."""

    tokens: AccessTokens
    origin: str  # of the lab, for the address that agents take

    def routes(self) -> list[Route]:
        """Return the pages."""
        return [Route(_TOKEN, self._make, methods=["POST"]), Route(_REVOKE, self._revoke, methods=["POST"])]

    def part_of(self, person: Person, has_password: bool) -> str:
        """Return the tokens of a person, and the form that makes one."""
        items = "".join(
            f"<li><div><b>{escape(state.name)}</b><p class='small'>{', '.join(sorted(state.scopes))} · last used {ago(state.used)}</p>"
            f'</div><form method="post" action="{_REVOKE}"><input type="hidden" name="name" value="{escape(state.name, quote=True)}">'
            f'<button class="plain" aria-label="Revoke {escape(state.name, quote=True)}">Revoke</button></form></li>'
            for state in self.tokens.list_for(person)
        )
        boxes = "".join(
            f'<label class="box"><input type="checkbox" name="{scope}" value="1"{" checked" if scope == "read" else ""}> {meaning}</label>'
            for scope, meaning in SCOPES.items()
        )
        return (
            f'<h2>Tokens for agents</h2><ul class="sessions">{items}</ul><form method="post" action="{_TOKEN}">'
            + input_field("name", "Name of a new token", "text", "off")
            + f"<fieldset><legend>It may</legend>{boxes}</fieldset>"
            + (input_field("password", "Current password", "password", "current-password") if has_password else "")
            + "<button>Make a token</button></form>"
        )

    async def _make(self, request: Request) -> Response:
        signed_in, form = await self._require_session(request), await read_form(request)
        name = signed_in.person.name
        try:
            if await asyncio.to_thread(
                self.accounts.has_password, name
            ):  # a session that was left open must not get more
                await self._require_password(request, signed_in, form.get("password", ""), "token")
            token = await asyncio.to_thread(self.tokens.new, signed_in.person, form.get("name", ""), list(form))
        except EngineError as error:
            back = f'<p><a href="{ACCOUNT}">Back to the account</a></p>'
            return page("Tokens for agents", problem_box(str(error)) + back, 400)
        await self._log(request, name, "token made", name, form["name"].strip())
        return page(
            "Tokens for agents",
            '<p class="notice" role="status">This is the only time that the token is shown.</p>'
            f"<p><code>{token}</code></p><p>The agent connects to <code>{escape(self.origin)}{AGENTS}</code> with the header "
            f'<code>Authorization: Bearer …</code>.</p><p><a href="{ACCOUNT}">Back to the account</a></p>',
        )

    async def _revoke(self, request: Request) -> Response:
        signed_in, form = await self._require_session(request), await read_form(request)
        await asyncio.to_thread(self.tokens.revoke, signed_in.person, form.get("name", ""))
        name = signed_in.person.name
        await self._log(request, name, "token revoked", name, form.get("name", ""))
        return RedirectResponse(ACCOUNT, 303)

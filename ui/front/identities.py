"""Accounts of another service that open accounts of the lab: sign in, accept an invitation, link, confirm. No JavaScript."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from typing import NamedTuple, get_args

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from loratory.engine.accounts.accounts import new_token
from loratory.engine.accounts.audit import AuditKind
from loratory.engine.accounts.identities import Identities, Identity, Purpose
from loratory.engine.accounts.people import Person, require_name
from loratory.engine.accounts.throttle import ThrottledError
from loratory.engine.errors import AccountError, EngineError
from loratory.ui.front import forms
from loratory.ui.front.account import ACCOUNT
from loratory.ui.front.gate import COOKIE, PROXY_USER, SIGN_IN

UNLINK = "/account/unlink"
_BACK: dict[Purpose, str] = {"sign in": SIGN_IN, "join": forms.JOIN, "link": ACCOUNT, "confirm": ACCOUNT}

Suggest = Callable[[], Awaitable[str | None]]


class Intent(NamedTuple):
    """What a sign-in with another service is for."""

    purpose: Purpose
    session: str = ""  # names the session that it belongs to; empty before one signed in
    invitation: str = ""  # token of the invitation to accept
    name: str = ""


class Service(NamedTuple):
    """Another service whose accounts open those of the lab."""

    title: str  # on buttons
    issuer: str  # in links
    log_name: str  # in the audit log
    can_confirm: bool  # whether it can require a fresh sign-in


@dataclass(frozen=True)
class IdentityPages(forms.PlainPages, ABC):
    """The part that does not depend on how the other service proves who a person is."""

    identities: Identities  # which account of the service opens whose

    @property
    @abstractmethod
    def service(self) -> Service:
        """The other service."""

    @abstractmethod
    async def go(self, request: Request, intent: Intent) -> Response:
        """Find out who the person is, and answer with `arrive`, at once or when the browser comes back."""

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """For which the service may be asked who a person is."""
        return get_args(Purpose)

    def routes(self) -> list[Route]:
        """Return the pages."""
        return [Route(forms.SIGN_IN_WITH, self._start, methods=["POST"]), Route(UNLINK, self._unlink, methods=["POST"])]

    async def arrive(
        self, request: Request, intent: Intent, identity: Identity, suggest: Suggest | None = None
    ) -> Response:
        """Complete the intent of a person with a known identity.

        Args:
            suggest: Returns a name for a new member that an admin's rule admits; None without such a rule.

        Raises:
            EngineError: If it is not allowed.
        """
        if intent.purpose == "sign in":
            return await self._sign_in(request, identity, suggest)
        if intent.purpose == "join":
            invitation = await asyncio.to_thread(self.accounts.find_invitation, intent.invitation)
            person = await asyncio.to_thread(self.identities.accept, intent.invitation, intent.name, identity)
            kind: AuditKind = "joined" if invitation.person is None else "linked"
            await self._log(request, person.name, kind, person.name, f"{person.role}, {self.service.log_name}")
            return await self._begin(request, person)
        signed_in = await self._find_session(request)
        if signed_in is None or signed_in.session != intent.session:
            raise AccountError("This session has ended.", "Sign in again.")
        if intent.purpose == "link":
            await asyncio.to_thread(self.identities.link, signed_in.person, identity)
            await self._log(request, signed_in.person.name, "linked", signed_in.person.name, self.service.log_name)
            return RedirectResponse(f"{ACCOUNT}?linked=1", 303)
        owner = await asyncio.to_thread(self.identities.person_of, identity)
        if owner is None or owner.name != signed_in.person.name:
            raise AccountError(
                f"This {self.service.title} account is not linked to yours.",
                f"Use the one that opens {signed_in.person.name}.",
            )
        await asyncio.to_thread(self.sessions.confirm, request.cookies[COOKIE])
        return RedirectResponse(f"{ACCOUNT}?confirmed=1", 303)

    async def show_failure(
        self, request: Request, intent: Intent, error: EngineError, reason: str = ""
    ) -> HTMLResponse:
        """Log a failed round, and return the page with the reason."""
        detail = f"{self.service.log_name}: {reason or intent.purpose}"
        await self._log(request, "", "sign-in failed", "", detail)
        return self.problem(str(error), intent.purpose, 403)

    def problem(self, text: str, purpose: Purpose, status: int) -> HTMLResponse:
        """Return an error page."""
        body = f'{forms.problem_box(text)}<p><a href="{_BACK[purpose]}">Back</a></p>'
        return forms.page(f"Sign in with {escape(self.service.title)}", body, status)

    def links_of(self, person: Person, has_password: bool) -> str:
        """Return the part of the account page about this service."""
        name = escape(self.service.title)
        if self.identities.subject_of(person, self.service.issuer) is None:
            link = (
                f'<h2>{name}</h2><p class="small">Sign in with your {name} account as well.</p>'
                f'<form method="post" action="{forms.SIGN_IN_WITH}">'
                + forms.field("password", "Current password", "password", "current-password")
                + f'<button name="for" value="link">Link {name}</button></form>'
            )
            return link if has_password else ""
        confirm = (
            f'<form method="post" action="{forms.SIGN_IN_WITH}"><button class="other" name="for" value="confirm">'
            f'Confirm with {name}</button></form><p class="small">Needed before you change what people may do.</p>'
        )
        unlink = f'<form method="post" action="{UNLINK}"><button class="other">Unlink {name}</button></form>'
        return (
            f'<h2>{name}</h2><p class="small">Linked: your {name} account opens this one.</p>'
            + (confirm if self.service.can_confirm and person.role == "admin" else "")
            + (unlink if has_password else "")
        )

    async def _start(self, request: Request) -> Response:
        form = await forms.read_form(request)
        purpose = next((purpose for purpose in self.purposes if form.get("for") == purpose), None)
        if purpose is None:
            return self.problem("Invalid form.", "sign in", 400)
        try:
            return await self.go(request, await self._intent(request, form, purpose))
        except ThrottledError as error:
            answer = self.problem(str(error), purpose, 429)
            answer.headers["Retry-After"] = str(error.seconds)
            return answer
        except EngineError as error:
            return self.problem(str(error), purpose, 400)

    async def _intent(self, request: Request, form: forms.Form, purpose: Purpose) -> Intent:
        if purpose == "sign in":
            self.throttle.begin(forms.address_of(request), f"round {new_token()}")  # no name: by address and in all
            return Intent(purpose)
        if purpose == "join":
            code, name = form.get("code", ""), form.get("name", "")
            self.throttle.begin(forms.address_of(request), f"invitation {code[:16]}")
            invitation = await asyncio.to_thread(self.accounts.find_invitation, code)
            return Intent(purpose, invitation=code, name=invitation.person or require_name(name))
        signed_in = await self._find_session(request)
        if signed_in is None:
            raise AccountError("This session has ended.", "Sign in again.")
        if purpose == "link":
            # A session that was left open must not get a second way in.
            await self._require_password(request, signed_in, form.get("password", ""), "link")
        elif not self.service.can_confirm:
            raise AccountError(f"{self.service.title} cannot confirm who you are.", "Use your password.")
        else:
            self.throttle.begin(forms.address_of(request), f"round {new_token()}")
        return Intent(purpose, signed_in.session)

    async def _unlink(self, request: Request) -> Response:
        signed_in = await self._require_session(request)
        try:
            await asyncio.to_thread(self.identities.unlink, signed_in.person, self.service.issuer)
        except EngineError as error:
            return self.problem(str(error), "link", 400)
        await self._log(request, signed_in.person.name, "unlinked", signed_in.person.name, self.service.log_name)
        return RedirectResponse(f"{ACCOUNT}?unlinked=1", 303)

    async def _sign_in(self, request: Request, identity: Identity, suggest: Suggest | None) -> Response:
        person = await asyncio.to_thread(self.identities.person_of, identity)
        if person is None and suggest is not None and not await asyncio.to_thread(self.identities.was_linked, identity):
            suggestion = await suggest()
            if suggestion is not None:
                person = await asyncio.to_thread(self.identities.join, suggestion, "member", identity)
                await self._log(request, person.name, "joined", person.name, f"{person.role}, {self.service.log_name}")
        if person is None:
            # The same words whether it is unknown, or the account is disabled or was removed.
            raise AccountError(
                f"This {self.service.title} account is not linked to an account of the lab.",
                "Ask an admin for an invitation.",
            )
        return await self._begin(request, person)

    async def _begin(self, request: Request, person: Person, *, is_confirmed: bool = False) -> Response:
        await self._log(request, person.name, "signed in", "", self.service.log_name)
        # Not confirmed: the service may have let its own session do, so nothing was typed just now.
        return await self._begin_session(request, person, "/", is_confirmed=is_confirmed)


_LONGEST_NAME = 255


@dataclass(frozen=True)
class ProxyPages(IdentityPages):
    """What takes the proxy's word for who a person is."""

    header: str  # in which the proxy names people

    @property
    def service(self) -> Service:
        """The proxy, which names people for as long as its own session lasts, so it confirms nothing."""
        return Service("single sign-on", f"proxy:{self.header}", "proxy", can_confirm=False)

    async def go(self, request: Request, intent: Intent) -> Response:
        """Do at once what a person wants."""
        name = getattr(request.state, PROXY_USER, "")
        try:
            if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
                raise AccountError("The proxy did not send your name.", "Sign in there first.")
            return await self.arrive(request, intent, Identity(self.service.issuer, name))
        except EngineError as error:
            return await self.show_failure(request, intent, error)

    def may_continue(self, person: Person, name: str) -> bool:
        """Return whether a session may be used by a browser for which the proxy gives this name.

        Where people share a browser, the session of one must not serve the next one.
        """
        subject = self.identities.subject_of(person, self.service.issuer)
        if subject is not None:
            return name == subject
        return self.identities.person_of(Identity(self.service.issuer, name)) is None

"""The pages of people who have not signed in, sign-in and invitation, and what all plain pages share.

They work without JavaScript.
"""

import asyncio
import dataclasses
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from loratory.engine.accounts.accounts import Accounts
from loratory.engine.accounts.audit import AuditKind, AuditLog
from loratory.engine.accounts.passwords import LONGEST, PASSWORD_THREADS, SHORTEST
from loratory.engine.accounts.people import Logins, Person
from loratory.engine.accounts.sessions import Sessions, SignedIn
from loratory.engine.accounts.throttle import SignInThrottle, ThrottledError
from loratory.engine.errors import AccountError, EngineError
from loratory.ui.front.gate import COOKIE, REQUESTED_COOKIE, SIGN_IN, requested_address
from loratory.ui.theme import ICON

JOIN = "/join"
SIGN_OUT = "/sign-out"
SIGN_IN_WITH = "/sign-in/with"  # an account of another service; only where there is one
DEVICE_COOKIE = "__Host-loratory-device"  # opens nothing: wrong passwords from elsewhere do not slow this browser down
_DEVICE_SECONDS = 180 * 24 * 3600
_LARGEST_FORM_BYTES = 8_000
_MOST_FIELDS = 10
_STYLE = (Path(__file__).parent / "front.css").read_text(encoding="utf-8")
# The code of an invitation is behind the #, which browsers keep to themselves; without JavaScript it is pasted.
_TAKE_CODE = "const take=()=>{const c=location.hash.slice(1);if(c){document.getElementById('code').value=c;history.replaceState(null,'',location.pathname)}};take();addEventListener('hashchange',take)"

Form = dict[str, str]
T = TypeVar("T")


def hash_of(text: str) -> str:
    """Return the source by which a content security policy allows an inline style or script."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_POLICY = f"default-src 'none'; style-src {hash_of(_STYLE)}; img-src data:; script-src {hash_of(_TAKE_CODE)}; form-action 'self'; base-uri 'none'"


@dataclass(frozen=True)
class PlainPages:
    """What the pages about accounts share."""

    accounts: Accounts
    sessions: Sessions
    throttle: SignInThrottle
    audit: AuditLog

    async def _find_session(self, request: Request) -> SignedIn | None:
        token = request.cookies.get(COOKIE, "")
        return await asyncio.to_thread(self.sessions.find, token) if token else None

    async def _require_session(self, request: Request) -> SignedIn:
        """Return the session of a request; without one, the answer leads to the sign-in page."""
        signed_in = await self._find_session(request)
        if signed_in is None:
            raise HTTPException(303, headers={"Location": SIGN_IN})
        return signed_in

    async def _begin_session(
        self, request: Request, person: Person, target: str, *, is_confirmed: bool = True
    ) -> Response:
        """Return the answer that gives the browser a new session and leads it to a page of ours, `/` to what was requested."""
        address, browser = address_of(request), request.headers.get("user-agent", "")
        token = await asyncio.to_thread(self.sessions.begin, person, address, browser, is_confirmed=is_confirmed)
        answer = RedirectResponse(requested_address(request) if target == "/" else target, 303)
        answer.delete_cookie(REQUESTED_COOKIE, secure=True, httponly=True, samesite="lax")
        # Without an age: it ends with the browser, and on the server after 12 unused hours in any case.
        answer.set_cookie(COOKIE, token, path="/", secure=True, httponly=True, samesite="lax")
        if device := await asyncio.to_thread(self.accounts.device_token, person.name):
            answer.set_cookie(DEVICE_COOKIE, device, _DEVICE_SECONDS, secure=True, httponly=True, samesite="lax")
        return answer

    async def _with_password(self, work: Callable[..., T], *arguments: str) -> T:
        """Hash a password in a thread of its own kind: a flood of them delays no session look-up."""
        return await asyncio.get_running_loop().run_in_executor(PASSWORD_THREADS, work, *arguments)

    async def _require_password(self, request: Request, signed_in: SignedIn, password: str, what: str) -> None:
        """Check the signed-in user's password again, before a change of the account.

        Raises:
            AccountError: If it is wrong, or was tried too often.
            BusyError: If too many passwords are being checked.
        """
        name = signed_in.person.name
        attempts = f"session {signed_in.session}"  # not by name: people outside cannot keep a person from it
        self.throttle.begin(address_of(request), name, device=attempts)
        if await self._with_password(self.accounts.check_password, name, password) is None:
            await self._log(request, name, "sign-in failed", name, what)
            raise AccountError("The current password is wrong.", "An admin can send you a link to reset it.")
        self.throttle.clear_attempts(address_of(request), name, device=attempts)

    async def _log(self, request: Request, person: str, kind: AuditKind, subject: str = "", detail: str = "") -> None:
        await asyncio.to_thread(self.audit.write, person, kind, subject, detail, address_of(request))


@dataclass(frozen=True)
class Front(PlainPages):
    """Sign-in, invitation and sign-out."""

    notice: Callable[[], str] = str  # returns a line for the sign-in page, such as an announcement of maintenance
    other_way: str = ""  # names the service whose accounts open those of the lab; empty where there is none
    logins: Logins = dataclasses.field(default_factory=Logins)  # at Hugging Face; forgotten with the last session

    def routes(self) -> list[Route]:
        """Return the pages."""
        return [
            Route(SIGN_IN, lambda _: self._sign_in_page(""), methods=["GET"]),
            Route(SIGN_IN, self._sign_in, methods=["POST"]),
            Route(JOIN, lambda _: self._join_page("", ""), methods=["GET"]),
            Route(JOIN, self._join, methods=["POST"]),
            Route(SIGN_OUT, self._sign_out, methods=["POST"]),
        ]

    async def _sign_in(self, request: Request) -> Response:
        form = await read_form(request)
        name, password = form.get("name", ""), form.get("password", "")
        try:
            device = await asyncio.to_thread(self.accounts.known_device, name, request.cookies.get(DEVICE_COOKIE, ""))
            self.throttle.begin(address_of(request), name, device=device)
            person = await self._with_password(self.accounts.check_password, name, password)
        except ThrottledError as error:
            if self.throttle.may_note():
                account_name = await asyncio.to_thread(self._account_name, name)
                await self._log(request, "", "sign-in failed", account_name, "throttled")
            answer = self._sign_in_page(name, str(error), 429)
            answer.headers["Retry-After"] = str(error.seconds)
            return answer
        except EngineError as error:
            return self._sign_in_page(name, str(error), 503)
        if person is None:
            await self._log(request, "", "sign-in failed", await asyncio.to_thread(self._account_name, name))
            # The same words for every reason: the name, the password, or that the account is disabled.
            return self._sign_in_page(name, "Wrong name or password.", 403)
        self.throttle.clear_attempts(address_of(request), name, device=device)
        return await self._signed_in(request, person)

    async def _join(self, request: Request) -> Response:
        form = await read_form(request)
        code, name, password = form.get("code", ""), form.get("name", ""), form.get("password", "")
        try:
            self.throttle.begin(address_of(request), f"invitation {code[:16]}")
            if password != form.get("again", ""):
                return self._join_page(code, name, "The two passwords differ. Type them again.", 400)
            invitation = await asyncio.to_thread(self.accounts.find_invitation, code)
            person = await self._with_password(self.accounts.accept, code, name, password)
        except ThrottledError as error:
            return self._join_page(code, name, str(error), 429)
        except EngineError as error:
            return self._join_page(code, name, str(error), 400)
        kind: AuditKind = "joined" if invitation.person is None else "password set"
        await self._log(request, person.name, kind, person.name, person.role)
        return await self._signed_in(request, person)

    async def _sign_out(self, request: Request) -> Response:
        signed_in = await self._find_session(request)
        if signed_in is not None:
            if (await read_form(request)).get("everywhere", ""):
                await asyncio.to_thread(self.sessions.end_all, signed_in.person)
            else:
                await asyncio.to_thread(self.sessions.end, request.cookies[COOKIE])
            await self._log(request, signed_in.person.name, "signed out")
            if not await asyncio.to_thread(self.sessions.list_for, signed_in.person):
                self.logins.forget(signed_in.person.name)  # other browsers of the user may still need it
        answer = RedirectResponse(SIGN_IN, 303)
        answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        answer.headers["Clear-Site-Data"] = '"cache", "cookies", "storage"'
        return answer

    async def _signed_in(self, request: Request, person: Person) -> Response:
        await self._log(request, person.name, "signed in")
        return await self._begin_session(request, person, "/")

    def _sign_in_page(self, name: str, problem: str = "", status: int = 200) -> HTMLResponse:
        notice = self.notice()
        other = (
            f'<form method="post" action="{SIGN_IN_WITH}">'
            f"{_other_button('sign in', f'Sign in with {self.other_way}')}</form>"
            '<p class="small or">or with a password of this lab</p>'
        )
        body = (
            (f'<p class="notice">{escape(notice)}</p>' if notice else "")
            + problem_box(problem)
            + (other if self.other_way else "")
            + f'<form method="post" action="{SIGN_IN}">'
            + field("name", "Name", "text", "username", name[:64])
            + field("password", "Password", "password", "current-password")
            + "<button>Sign in</button></form>"
            + '<p class="small">No account, or a forgotten password? An admin of this lab can send you a link.</p>'
        )
        return page("Sign in", body, status)

    def _join_page(self, code: str, name: str, problem: str = "", status: int = 200) -> HTMLResponse:
        other = '<p class="small or">or without a password</p>' + _other_button(
            "join", f"Continue with {self.other_way}", f' class="other" formaction="{SIGN_IN_WITH}" formnovalidate'
        )
        body = (
            problem_box(problem)
            + f'<form method="post" action="{JOIN}">'
            + field("code", "Code of the invitation", "text", "off", code[:64])
            + field("name", "Name", "text", "username", name[:64], is_required=False)
            + '<p class="small">2 to 32 letters, digits, - and _. Leave it empty if the link resets your password.</p>'
            + field("password", "New password", "password", "new-password")
            + field("again", "New password again", "password", "new-password")
            + f'<p class="small">{SHORTEST} to {LONGEST} characters, such as several words.</p>'
            + f"<button>Continue</button>{other if self.other_way else ''}</form>"
            + f"<script>{_TAKE_CODE}</script>"
        )
        return page("Join", body, status)

    def _account_name(self, name: str) -> str:
        """Return a name for the log: what is not the name of an account may be a password in the wrong field."""
        try:
            return self.accounts.person(name).name
        except EngineError:
            return "unknown name"


async def read_form(request: Request) -> Form:
    """Return a form; one that is larger than any of ours is refused, without reading it to its end.

    Only what a plain HTML form sends is read: anything else has no fields.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
    try:
        return dict(parse_qsl(body.decode(), max_num_fields=_MOST_FIELDS, keep_blank_values=True))
    except ValueError:  # not UTF-8, or more fields than any form has
        return {}


def address_of(request: Request) -> str:
    """Return the address of a client, as the gate found it."""
    return request.client.host if request.client else ""


def _other_button(purpose: str, label: str, attributes: str = "") -> str:
    return f'<button name="for" value="{purpose}"{attributes}>{escape(label)}</button>'


def field(name: str, label: str, kind: str, autocomplete: str, value: str = "", *, is_required: bool = True) -> str:
    """Return an input with its label."""
    return (
        f'<label for="{name}">{label}</label>'
        f'<input id="{name}" name="{name}" type="{kind}" autocomplete="{autocomplete}" value="{escape(value)}"'
        f'{" required" if is_required else ""} maxlength="{LONGEST}" autocapitalize="none" spellcheck="false">'
    )


def problem_box(text: str) -> str:
    """Return an error that screen readers announce; empty for an empty text."""
    return f'<p class="problem" role="alert">{escape(text)}</p>' if text else ""


def page(title: str, body: str, status: int = 200, head: str = "") -> HTMLResponse:
    """Return a plain page; the body, and what is added to the head, are HTML."""
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} · Loratory</title>{head}{ICON}'
        f'<meta name="color-scheme" content="light dark"><style>{_STYLE}</style></head>'
        f'<body><main><p class="name">Lora<i>tory</i></p><h1>{title}</h1>{body}</main></body></html>'
    )
    return HTMLResponse(document, status, headers={"Content-Security-Policy": _POLICY})

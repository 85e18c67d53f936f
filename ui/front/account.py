"""The page of one's own account: sessions, password. It works without JavaScript."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from loratory.engine.accounts.passwords import LONGEST, SHORTEST
from loratory.engine.accounts.people import Person
from loratory.engine.accounts.sessions import SessionState, SignedIn
from loratory.engine.errors import AccountError, EngineError
from loratory.engine.quantities import ago
from loratory.ui.front.forms import SIGN_OUT, PlainPages, field, page, problem_box, read_form

ACCOUNT = "/account"
_PASSWORD = f"{ACCOUNT}/password"
_SESSION = f"{ACCOUNT}/session"
_NOTICES = {
    "changed": "Password changed. All other sessions were signed out.",
    "linked": "Linked. You can sign in with it from now on.",
    "unlinked": "Unlinked.",
    "confirmed": "Confirmed. For ten minutes you may change what people may do; repeat it on the Lab tab.",
}
# Names in a browser's own description, the more special first: each of them also names those after it.
_BROWSERS = {
    "Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrome": "Chrome", "Safari": "Safari", "curl": "curl",
    "python": "Python",
}  # fmt: skip
_SYSTEMS = {
    "iPhone": "iPhone", "iPad": "iPad", "Android": "Android", "Windows": "Windows", "Mac OS X": "macOS",
    "CrOS": "ChromeOS", "Linux": "Linux",
}  # fmt: skip


@dataclass(frozen=True)
class AccountPages(PlainPages):
    """What a signed-in person sees and changes of the own account."""

    # Return HTML of further parts, about a person who has a password or not.
    parts_of: tuple[Callable[[Person, bool], str], ...] = ()
    has_passwords: bool = True  # whether people may have any

    def routes(self) -> list[Route]:
        """Return the pages."""
        routes = [Route(ACCOUNT, self._show, methods=["GET"]), Route(_SESSION, self._end_session, methods=["POST"])]
        return [*routes, *([Route(_PASSWORD, self._change_password, methods=["POST"])] if self.has_passwords else ())]

    async def _show(self, request: Request) -> Response:
        return await self._page(await self._require_session(request), request)

    async def _change_password(self, request: Request) -> Response:
        signed_in, form = await self._require_session(request), await read_form(request)
        name, old, new = signed_in.person.name, form.get("old", ""), form.get("new", "")
        try:
            if new != form.get("again", ""):
                raise AccountError("The two new passwords differ.", "Type them again.")
            await self._require_password(request, signed_in, old, "password change")
            await self._with_password(self.accounts.change_password, name, old, new)
        except EngineError as error:
            return await self._page(signed_in, request, str(error), 400)
        await self._log(request, name, "password set", name)
        # The old password opened all sessions, so they ended; this browser gets another.
        return await self._begin_session(request, signed_in.person, f"{ACCOUNT}?changed=1")

    async def _end_session(self, request: Request) -> Response:
        signed_in, form = await self._require_session(request), await read_form(request)
        await asyncio.to_thread(self.sessions.end_named, signed_in.person, form.get("session", ""))
        name = signed_in.person.name
        await self._log(request, name, "signed out", name, "one session")
        return RedirectResponse(ACCOUNT, 303)

    async def _page(self, signed_in: SignedIn, request: Request, problem: str = "", status: int = 200) -> Response:
        person = signed_in.person
        sessions = await asyncio.to_thread(self.sessions.list_for, person)
        has_password = await asyncio.to_thread(self.accounts.has_password, person.name)
        parts = [await asyncio.to_thread(part_of, person, has_password) for part_of in self.parts_of]
        notice = next((text for name, text in _NOTICES.items() if name in request.query_params), "")
        password = (_PASSWORD_FORM if has_password else _LINK_ADVICE) if self.has_passwords else ""
        body = (
            (f'<p class="notice" role="status">{escape(notice)}</p>' if notice else "")
            + problem_box(problem)
            + f'<p>Signed in as <b>{escape(person.name)}</b>, {person.role}. <a href="/">Back to Loratory</a></p>'
            + f'<h2>Sessions</h2><ul class="sessions">{"".join(_session(session, signed_in) for session in sessions)}</ul>'
            + f'<form method="post" action="{SIGN_OUT}"><input type="hidden" name="everywhere" value="1">'
            + "<button>Sign out everywhere</button></form>"
            + "".join(parts)
            + password
        )
        return page("Account", body, status)


_LINK_ADVICE = '<h2>Password</h2><p class="small">This account has none. An admin can send you a link to set one.</p>'
_PASSWORD_FORM = (
    f'<h2>Password</h2><form method="post" action="{_PASSWORD}">'
    + field("old", "Current password", "password", "current-password")
    + field("new", "New password", "password", "new-password")
    + field("again", "New password again", "password", "new-password")
    + f'<p class="small">{SHORTEST} to {LONGEST} characters, such as several words. Other sessions are signed out.</p>'
    + "<button>Change password</button></form>"
)


def _session(session: SessionState, signed_in: SignedIn) -> str:
    is_this = session.session == signed_in.session
    end = (
        f'<form method="post" action="{_SESSION}"><input type="hidden" name="session" value="{session.session}">'
        f'<button class="plain" aria-label="Sign out {escape(browser_name(session.browser), quote=True)}">Sign out</button></form>'
    )
    last_use = "this session" if is_this else f"last used {ago(session.used)}"
    return (
        f"<li><div><b>{escape(browser_name(session.browser))}</b>"
        f'<p class="small">{escape(session.address or "unknown address")} · {last_use} · signed in {ago(session.created)}</p>'
        f"</div>{'' if is_this else end}</li>"
    )


def browser_name(description: str) -> str:
    """Return a browser as people know it, such as `Firefox on Linux`, from what it calls itself."""
    names = [
        next((label for name, label in table.items() if name in description), "") for table in (_BROWSERS, _SYSTEMS)
    ]
    return " on ".join(filter(None, names)) or description[:40] or "Unknown browser"

"""A lab in a Hugging Face Space: people sign in with their account there, visitors see the demo."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from loratory.engine.accounts.accounts import Accounts
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.database import Database
from loratory.engine.accounts.identities import Identities, Purpose
from loratory.engine.accounts.oidc import Arrival, Provider, Round
from loratory.engine.accounts.people import Logins
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.accounts.throttle import SignInThrottle
from loratory.engine.chat.zero_gpu import ZeroGpu
from loratory.engine.errors import AccountError, EngineError
from loratory.engine.inspector.session import InspectorSlots
from loratory.engine.paths import LoratoryHome
from loratory.engine.space.admission import Admission, Visitor
from loratory.engine.space.environment import ADMITTED, HUB, SpaceEnvironment
from loratory.engine.space.mirror import mirror_of
from loratory.ui.front.demo import DemoPages, open_demo
from loratory.ui.front.forms import SIGN_IN_WITH, SIGN_OUT, Front, page
from loratory.ui.front.gate import SIGN_IN, Welcome
from loratory.ui.front.identities import IdentityPages, Intent
from loratory.ui.front.oidc import OidcPages

_USABLE_SCOPE = "jobs"  # a token without it starts nothing that a person asks for here
_LAST_SECONDS = 7.0  # to save; Hugging Face kills the process ten seconds after it asked it to end
_LOST = "Not mirrored: runs and settings are lost when this Space sleeps or restarts."


@dataclass(frozen=True)
class Space:
    """What a lab has in a Space."""

    environment: SpaceEnvironment  # as Hugging Face and the owner describe it
    provider: Provider  # Hugging Face, to sign in with
    demo: DemoPages  # for people without an account
    # Returns a text about what a user would lose at a restart; empty for nothing.
    unsaved_words: Callable[[str], str]
    slots: InspectorSlots = field(default_factory=InspectorSlots)  # for the inspectors' processes of all people

    @property
    def zero_gpu(self) -> ZeroGpu | None:
        """ZeroGPU, which gives chats a GPU for each answer; None on other hardware."""
        variables = self.environment.zero_gpu
        return ZeroGpu(variables) if variables else None

    @property
    def welcome(self) -> Welcome:
        """The page without an account, also in the frame of the Space's page."""
        routes = self.demo.routes()
        app = Starlette(routes=[Route("/", self.demo.welcome, methods=["GET"]), *routes])
        return Welcome(app, frozenset(route.path for route in routes), HUB)

    def who_gets_in(self) -> str:
        """Return a text about where the owner sets who is admitted."""
        return (
            f"People and organizations that {self.environment.author} lists in {ADMITTED}, a secret in the settings of the "
            "Space, get an account when they sign in."
        )


@contextlib.contextmanager
def open_space(environment: SpaceEnvironment, home: LoratoryHome) -> Iterator[Space]:
    """Restore what was mirrored, then mirror and run the demo for as long as the Space is served.

    Raises:
        EngineError: If something cannot be restored. An empty disk is not used then: what people do on it would be lost.
    """
    mirror = mirror_of(environment, home)
    if mirror is not None:
        mirror.restore()
        mirror.start()

    def unsaved_words(owner: str) -> str:
        return _LOST if mirror is None else mirror.unsaved(owner).text

    provider = Provider(environment.oidc, environment.address.origin, reauthenticates=False)
    slots = InspectorSlots()
    if environment.zero_gpu:
        try:
            ZeroGpu(environment.zero_gpu).report(home.logs / "zero-gpu.log")
        except EngineError as error:  # all but chat does without
            print(error, flush=True)
    try:
        with open_demo(home, environment, slots) as demo:
            yield Space(environment, provider, demo, unsaved_words, slots)
    finally:
        if mirror is not None and not mirror.stop(_LAST_SECONDS):
            print("The Space ends before everything was saved.", flush=True)


def build_sign_in(
    space: Space,
    database: Database,
    shared: tuple[Accounts, Sessions, SignInThrottle, AuditLog],
    notice: Callable[[], str],
    logins: Logins,
) -> tuple[Front, IdentityPages]:
    """Return the pages with which people sign in.

    All sessions that a mirror brought back end: who is admitted may have changed, and tokens were in memory alone.
    """
    accounts, sessions, _, _ = shared
    sessions.clear()
    admission = Admission(space.environment, database, accounts)
    identities = Identities(database, accounts)
    other = SpacePages(*shared, identities, space.provider, admission=admission, space=space, logins=logins)
    return SpaceFront(*shared, notice, other.service.title, logins, environment=space.environment), other


@dataclass(frozen=True, kw_only=True)
class SpacePages(OidcPages):
    """Signs in people that the owner admits."""

    admission: Admission
    space: Space
    logins: Logins  # of the people who are signed in

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """The purposes without invitations to accept and passwords to link with."""
        return "sign in", "confirm"

    async def on_arrival(self, request: Request, intent: Intent, flow: Round, arrival: Arrival) -> Response:
        """Answer a person who returns from Hugging Face."""
        if intent.purpose == "confirm":
            return await super().on_arrival(request, intent, flow, arrival)
        visitor = Visitor.from_claims(arrival.identity.subject, await self.provider.sources(flow, arrival))
        try:
            admission = await asyncio.to_thread(self.admission.admit, visitor)
        except AccountError as error:
            return await self._turn_away(request, visitor, str(error))
        if admission is None:
            (subject, name), author = visitor.account, self.space.environment.author
            reason = (
                f"{name} (id {subject}) is not admitted to this Space. Ask {author} to add you, or duplicate the Space."
            )
            return await self._turn_away(request, visitor, reason)
        person = admission.person
        if admission.is_new:
            await self._log(request, person.name, "joined", person.name, f"{person.role}, {self.service.log_name}")
        if arrival.access_token and _USABLE_SCOPE in (arrival.scopes or set(self.space.environment.scopes)):
            self.logins.put(person.name, arrival.access_token, arrival.expires)
        # Confirmed: a browser that is signed in to Hugging Face can change all of the Space there as well.
        return await self._begin(request, person, is_confirmed=True)

    async def _turn_away(self, request: Request, visitor: Visitor, reason: str) -> Response:
        """Show the demo to a person who is not admitted, and end their earlier sessions."""
        member = await asyncio.to_thread(self.admission.known, visitor)
        if member is not None:
            await asyncio.to_thread(self.sessions.end_all, member)
            self.logins.forget(member.name)
        subject, detail = visitor.account.subject[:64], f"{self.service.log_name}: not admitted"
        await self._log(request, "", "sign-in failed", subject, detail)
        return await self.space.demo.welcome(request, reason)


@dataclass(frozen=True, kw_only=True)
class SpaceFront(Front):
    """The sign-in page of a Space: one button."""

    environment: SpaceEnvironment

    def routes(self) -> list[Route]:
        """Return the pages."""
        return [Route(SIGN_IN, self._offer, methods=["GET"]), Route(SIGN_OUT, self._sign_out, methods=["POST"])]

    async def _offer(self, request: Request) -> Response:
        if await self._find_session(request) is not None:
            return RedirectResponse("/", 303)
        notice, environment = self.notice(), self.environment
        return page(
            "Sign in",
            (f'<p class="notice">{escape(notice)}</p>' if notice else "")
            + f"<p>{escape(environment.space_id)} trains models for {escape(environment.author)}, and for people and "
            "organizations that are admitted.</p>"
            f'<form method="post" action="{SIGN_IN_WITH}"><button name="for" value="sign in">'
            f"Sign in with {escape(self.other_way)}</button></form>"
            '<p class="small"><a href="/">Back to the demo</a> · '
            f'<a href="{escape(environment.duplicate_url)}" rel="noopener">Duplicate this Space</a></p>',
        )

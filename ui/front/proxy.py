"""Sign in as the user that a proxy names."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from engine.accounts.identities import Identity
from engine.accounts.people import Person
from engine.errors import AccountError, EngineError
from ui.front.gate import PROXY_USER
from ui.front.identities import IdentityPages, Intent, Service

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
            return await self.arrive(request, intent, Identity(self.service.issuer, name), _no_rule)
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


async def _no_rule() -> None:
    return None

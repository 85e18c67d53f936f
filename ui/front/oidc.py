"""Sign in through an OpenID Connect provider: to it in one page, and back in one request."""

from dataclasses import dataclass, field
from html import escape
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loratory.engine.accounts.accounts import digest_of, new_token
from loratory.engine.accounts.oidc import CALLBACK, ROUND_SECONDS, Arrival, Provider, ProviderError, Round, Rounds
from loratory.engine.errors import EngineError
from loratory.ui.front.forms import page
from loratory.ui.front.identities import IdentityPages, Intent, Service

ROUND_COOKIE = "__Host-loratory-oidc"


@dataclass(frozen=True)
class OidcPages(IdentityPages):
    """What sends a browser to the provider and takes it back."""

    provider: Provider  # whose accounts open those of the lab
    _rounds: Rounds = field(default_factory=Rounds)

    @property
    def service(self) -> Service:
        """The provider; it is asked for a fresh sign-in, and must confirm its time."""
        settings = self.provider.settings
        return Service(settings.title, settings.issuer, settings.host, can_confirm=True)

    def routes(self) -> list[Route]:
        """Return the pages."""
        return [*super().routes(), Route(CALLBACK, self._come_back, methods=["GET"])]

    async def go(self, request: Request, intent: Intent) -> Response:
        """Return the page that leads to the provider."""
        try:
            endpoints = await self.provider.discover()
        except ProviderError as error:
            return await self.show_failure(request, intent, error, error.reason)
        browser = new_token()
        flow = Round(
            intent.purpose, endpoints, self._rounds.now(), digest_of(browser), intent.session, intent.invitation, intent.name
        )  # fmt: skip
        self._rounds.add(flow)
        target = escape(self.provider.address_for(flow))
        # Not a redirect: a policy about forms holds for where their answers lead as well, and who knows where a provider
        # sends people on its own way to sign them in.
        answer = page(
            "Continue",
            f'<p>Continue at <a href="{target}" rel="noreferrer">{escape(urlsplit(endpoints.authorization).netloc)}</a>.</p>',
            head=f'<meta http-equiv="refresh" content="0;url={target}">',
        )
        answer.set_cookie(
            ROUND_COOKIE, browser, max_age=ROUND_SECONDS, path="/", secure=True, httponly=True, samesite="lax"
        )
        return answer

    async def _come_back(self, request: Request) -> Response:
        query = request.query_params
        parameters = {name: query[name] for name in ("state", "code", "iss", "error") if len(query.getlist(name)) == 1}
        flow = self._rounds.take(parameters.get("state", ""), request.cookies.get(ROUND_COOKIE, ""))
        if flow is None:
            text = "This sign-in has expired, was used before, or began in another browser. Begin again."
            return self.problem(text, "sign in", 400)
        intent = Intent(flow.purpose, flow.session, flow.invitation, flow.name)
        answer: Response
        try:
            if "error" in parameters:
                title = self.service.title
                raise ProviderError(title, "refused by the provider", f"{title} did not sign you in.")
            arrival = await self.provider.finish(flow, parameters.get("code", ""), parameters.get("iss"))
            answer = await self.on_arrival(request, intent, flow, arrival)
        except ProviderError as error:
            answer = await self.show_failure(request, intent, error, error.reason)
        except EngineError as error:
            answer = await self.show_failure(request, intent, error)
        answer.delete_cookie(ROUND_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        return answer

    async def on_arrival(self, request: Request, intent: Intent, flow: Round, arrival: Arrival) -> Response:
        """Answer a person who returns from the provider.

        Raises:
            EngineError: If what they wanted is not allowed.
        """
        return await self.arrive(request, intent, arrival.identity, lambda: self._suggest(flow, arrival))

    async def _suggest(self, flow: Round, arrival: Arrival) -> str | None:
        rule = self.provider.settings.members
        if not rule.is_set:
            return None
        sources = await self.provider.sources(flow, arrival)
        if not rule.admits(sources):
            return None
        names = [source.get(claim) for claim in ("preferred_username", "nickname", "email") for source in sources]
        first = next((name for name in names if isinstance(name, str) and name), "")
        return first.partition("@")[0]

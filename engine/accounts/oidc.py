"""Sign in through an OpenID Connect provider: the authorization code flow with PKCE, and the check of what comes back.

Nothing of a provider is kept: each sign-in reads its configuration and keys, so a rotated key works at once.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from loratory.engine.accounts.accounts import digest_of, new_token
from loratory.engine.accounts.identities import Identity, Purpose
from loratory.engine.accounts.oidc_settings import Claims, OidcSettings, require_https
from loratory.engine.errors import AccountError

try:
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet, import_key
    from joserfc.jws import JWSRegistry
except ImportError as missing:
    raise AccountError("OpenID Connect needs the package joserfc.", "Run pip install 'loratory[oidc]'.") from missing

# Signatures with a public key. `none` is without a signature, and HS256 would take the provider's public key for a shared secret.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
SKEW_SECONDS = 60  # between the clocks of two machines
ROUND_SECONDS = 10 * 60  # to sign in at the provider
CALLBACK = "/oidc/callback"  # below the lab's address; registered at the provider
_MOST_ROUNDS = 5_000
_TIMEOUT_SECONDS = 10.0  # for all that one step asks the provider, however slowly it answers
_LARGEST_ANSWER_BYTES = 256_000
_LARGEST_CODE = 4_000
_LONGEST_TOKEN_SECONDS = 366 * 24 * 3600
_LARGEST_SUBJECT = 255  # OpenID Connect Core 1.0, section 2


class ProviderError(AccountError):
    """A provider did not answer, or what it answered cannot be trusted; `reason` is for the audit log.

    Neither has anything of a token, a code or an answer in it.
    """

    def __init__(self, title: str, reason: str, what: str = "") -> None:
        self.reason = reason
        super().__init__(
            what or f"Signing in with {title} failed.", "Try again; if it fails again, ask an admin of this lab."
        )


@dataclass(frozen=True)
class Endpoints:
    """The configuration of a provider."""

    authorization: str
    token: str
    keys: str
    userinfo: str | None
    sends_secret_in_body: bool
    names_issuer: bool


@dataclass(frozen=True)
class Round:
    """One way to the provider and back, in one browser."""

    purpose: Purpose
    endpoints: Endpoints  # as the provider described them when it began
    began: float  # seconds since the epoch
    browser: bytes  # SHA-256 of what the browser's cookie holds
    session: str = ""  # names the session that it belongs to; empty before one signed in
    invitation: str = field(default="", repr=False)  # token of the invitation that it accepts
    name: str = ""
    state: str = field(default_factory=new_token, repr=False)  # names it to the provider
    nonce: str = field(default_factory=new_token, repr=False)  # comes back in the ID token
    verifier: str = field(default_factory=new_token, repr=False)  # of PKCE


class Rounds:
    """The rounds that have not come back yet. In memory: after a restart, people click once more."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rounds: dict[str, Round] = {}

    def now(self) -> float:
        """Return when a round begins that begins now."""
        return self._clock()

    def add(self, round_: Round) -> None:
        """Wait for a round to come back."""
        oldest = self._clock() - ROUND_SECONDS
        while self._rounds and next(iter(self._rounds.values())).began < oldest:  # they are in order
            del self._rounds[next(iter(self._rounds))]
        if len(self._rounds) >= _MOST_ROUNDS:
            raise AccountError("Too many people sign in at this moment.", "Try again in a few minutes.")
        self._rounds[round_.state] = round_

    def take(self, state: str, browser: str) -> Round | None:
        """Return the round that comes back, once; None where it is not known, too old, or began in another browser."""
        round_ = self._rounds.pop(state, None)
        if round_ is None or self._clock() - round_.began > ROUND_SECONDS:
            return None
        return round_ if hmac.compare_digest(round_.browser, digest_of(browser)) else None


@dataclass(frozen=True)
class Arrival:
    """A person who came back from the provider."""

    identity: Identity
    claims: Claims = field(repr=False)
    access_token: str = field(repr=False)  # for the provider's userinfo endpoint
    expires: float = 0.0  # when the token does, in seconds since the epoch; 0 where the provider does not say
    scopes: frozenset[str] = frozenset()  # of the token, as the provider reports them


class Provider:
    """One OpenID Connect provider.

    Args:
        origin: Of the lab, to which it sends people back.
        verify: Knows whose certificates to trust.
        reauthenticates: Whether a person confirms something only by signing in at the provider once more.
    """

    def __init__(
        self, settings: OidcSettings, origin: str, verify: ssl.SSLContext | None = None, *, reauthenticates: bool = True
    ) -> None:
        self.settings = settings
        self._reauthenticates = reauthenticates
        self.redirect_uri = f"{origin}{CALLBACK}"
        self._verify = verify or httpx.create_ssl_context()

    async def discover(self) -> Endpoints:
        """Return where to send people and questions.

        Raises:
            ProviderError: If it does not answer, or names another issuer or an address that is not https.
        """
        url = f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration"
        document = await self._request("configuration", "GET", url)
        if document.get("issuer") != self.settings.issuer:
            raise self._error("configuration names another issuer")
        try:
            userinfo = document.get("userinfo_endpoint")
            methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            return Endpoints(
                require_https(document["authorization_endpoint"]),
                require_https(document["token_endpoint"]),
                require_https(document["jwks_uri"]),
                require_https(userinfo) if userinfo is not None else None,
                sends_secret_in_body="client_secret_basic" not in methods,
                names_issuer=document.get("authorization_response_iss_parameter_supported") is True,
            )
        except (KeyError, TypeError, ValueError):
            raise self._error("configuration has an address that is not https") from None

    def address_for(self, round_: Round) -> str:
        """Return the address at the provider to which the browser goes."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(round_.verifier.encode()).digest()).rstrip(b"=").decode()
        values = {
            "response_type": "code", "client_id": self.settings.client_id, "redirect_uri": self.redirect_uri,
            "scope": self.settings.scope, "state": round_.state, "nonce": round_.nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        if round_.purpose == "confirm" and self._reauthenticates:
            values |= {"prompt": "login", "max_age": "0"}
        address = round_.endpoints.authorization
        return f"{address}{'&' if '?' in address else '?'}{urlencode(values)}"

    async def finish(self, round_: Round, code: str, issuer: str | None) -> Arrival:
        """Return who came back with a code.

        Args:
            code: As the browser brought it.
            issuer: As the browser brought it, where it did (RFC 9207).

        Raises:
            ProviderError: If the provider refuses the code, or its ID token does not hold.
        """
        if issuer != self.settings.issuer and (issuer is not None or round_.endpoints.names_issuer):
            raise self._error("answer of another provider")
        if not code or len(code) > _LARGEST_CODE:
            raise self._error("answer without a code")
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect_uri,
            "code_verifier": round_.verifier,
        }  # fmt: skip
        client, secret = self.settings.client_id, self.settings.client_secret.get_secret_value()
        if round_.endpoints.sends_secret_in_body:
            form |= {"client_id": client, "client_secret": secret}
            answer = await self._request("token", "POST", round_.endpoints.token, data=form)
        else:
            basic = (quote(client, safe=""), quote(secret, safe=""))  # RFC 6749, section 2.3.1
            answer = await self._request("token", "POST", round_.endpoints.token, data=form, auth=basic)
        token, access = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str):
            raise self._error("answer without an ID token")
        keys = await self._request("keys", "GET", round_.endpoints.keys)
        claims = self._check(token, keys, round_)
        identity = Identity(self.settings.issuer, claims["sub"])
        lifetime, scope = answer.get("expires_in"), answer.get("scope")
        seconds = float(lifetime) if type(lifetime) in (int, float) and 0 < lifetime < _LONGEST_TOKEN_SECONDS else None  # type: ignore[operator, arg-type]
        return Arrival(
            identity,
            claims,
            access if isinstance(access, str) else "",
            0.0 if seconds is None else time.time() + seconds,
            frozenset(scope.split()) if isinstance(scope, str) else frozenset(),
        )

    async def sources(self, round_: Round, arrival: Arrival) -> tuple[Claims, ...]:
        """Return what the provider says about a person: in the ID token, and where it can be asked.

        Raises:
            ProviderError: If it does not answer, or answers about another person.
        """
        if round_.endpoints.userinfo is None or not arrival.access_token:
            return (arrival.claims,)
        headers = {"Authorization": f"Bearer {arrival.access_token}"}
        answer = await self._request("userinfo", "GET", round_.endpoints.userinfo, headers=headers)
        if answer.get("sub") != arrival.identity.subject:
            raise self._error("userinfo of another person")
        return (arrival.claims, answer)

    def _check(self, token: str, keys: Claims, round_: Round) -> Claims:
        """Return the claims of an ID token that this provider signed for this round (OpenID Connect Core, 3.1.3.7)."""
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        rules = jwt.JWTClaimsRegistry(
            now=int(time.time()), leeway=SKEW_SECONDS,
            iss={"essential": True, "value": self.settings.issuer}, sub={"essential": True},
            aud={"essential": True}, exp={"essential": True}, iat={"essential": True},
            nonce={"essential": True, "value": round_.nonce},
        )  # fmt: skip
        try:
            claims = jwt.decode(token, _key_set(keys), ALGORITHMS, registry).claims
            rules.validate(claims)
        except JoseError as error:
            raise self._error(f"ID token: {error.error} {getattr(error, 'claim', '')}".strip()) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._error("ID token: unreadable") from None
        client = self.settings.client_id
        if claims["aud"] not in (client, [client]) or claims.get("azp", client) != client:
            raise self._error("ID token: for another client")  # also where it is for this one and others
        subject = claims["sub"]
        if not subject.isascii() or not subject.isprintable() or len(subject) > _LARGEST_SUBJECT:
            raise self._error("ID token: no usable subject")
        if claims["iat"] < round_.began - SKEW_SECONDS:
            raise self._error("ID token: older than the sign-in")
        moment = claims.get("auth_time")
        is_fresh = type(moment) in (int, float) and moment >= round_.began - SKEW_SECONDS  # type: ignore[operator]
        if round_.purpose == "confirm" and self._reauthenticates and not is_fresh:
            what = f"{self.settings.title} does not confirm that you have just signed in there."
            raise ProviderError(self.settings.title, "no fresh sign-in at the provider", what)
        return claims

    async def _request(self, what: str, method: str, url: str, **options: Any) -> dict[str, Any]:
        """Return a JSON object; redirects are not followed, and nothing is read past the limits."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **options.pop("headers", {})}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(_TIMEOUT_SECONDS),
                httpx.AsyncClient(verify=self._verify, follow_redirects=False, timeout=_TIMEOUT_SECONDS) as client,
                client.stream(method, url, headers=headers, **options) as answer,
            ):
                if answer.status_code != 200:
                    raise self._error(f"{what}: HTTP {answer.status_code}")
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > _LARGEST_ANSWER_BYTES:
                        raise self._error(f"{what}: too large")
            document = json.loads(body)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            what = f"{what}: {type(error).__name__}"
            raise ProviderError(self.settings.title, what, f"{self.settings.title} does not answer.") from None
        except (ValueError, RecursionError):
            raise self._error(f"{what}: not JSON") from None
        if not isinstance(document, dict):
            raise self._error(f"{what}: not an object")
        return document

    def _error(self, reason: str) -> ProviderError:
        return ProviderError(self.settings.title, reason)


def _key_set(document: Claims) -> KeySet:
    """Return the public keys for signatures that a provider publishes; what is something else is left out."""
    keys = []
    for key in document["keys"]:
        if key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig":
            try:
                keys.append(import_key(key))
            except (JoseError, ValueError, TypeError, KeyError):
                continue
    return KeySet(keys)

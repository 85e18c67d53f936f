"""A little OpenID Connect provider behind real TLS, that checks what a real one does and misbehaves on demand."""

import base64
import hashlib
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from loratory.engine.accounts.listener import bound_socket
from tests.real_tls import certificate_for, serve_over_tls

CLIENT, SECRET = "lab of ann".replace(" ", "-"), "s3cr%t +/?&=:canary"


@dataclass
class Institute:
    """A provider whose next answers a test decides.

    Attributes:
        issuer: Its address.
        user: Subject of the person who is signed in there.
        claims: More claims of the ID token; None removes one.
        userinfo: More claims of its user info.
        token: More values next to the access token.
        sign: Makes the ID token from its claims.
        discovery: Changes of its configuration.
        answers: Other answers, by path.
        request_paths: Paths that were requested.
        authorizations: Queries of the requests to sign in.
    """

    issuer: str
    trust: ssl.SSLContext
    keys: KeySet
    user: str = "4711"
    claims: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=dict)
    token: dict[str, Any] = field(default_factory=dict)
    sign: Callable[[dict[str, Any]], str] | None = None
    discovery: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Callable[[], Response]] = field(default_factory=dict)
    request_paths: list[str] = field(default_factory=list)
    authorizations: list[dict[str, str]] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def reset(self) -> None:
        """Behave well again."""
        self.user, self.sign = "4711", None
        for values in (self.claims, self.userinfo, self.token, self.discovery, self.answers, self.codes):
            values.clear()
        self.request_paths.clear()
        self.authorizations.clear()

    def rotate(self) -> None:
        """Sign with another key from now on."""
        self.keys = new_keys()

    def sign_claims(self, claims: dict[str, Any]) -> str:
        """Return an ID token as the provider signs it."""
        key = self.keys.keys[0]
        return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)

    def app(self) -> Starlette:
        """Return what answers."""
        routes = {
            "/.well-known/openid-configuration": self._configuration, "/authorize": self._authorize, "/token": self._token,
            "/keys": self._keys, "/userinfo": self._userinfo,
        }  # fmt: skip
        return Starlette(
            routes=[
                Route(path, self._or_else(path, answer), methods=["GET", "POST"]) for path, answer in routes.items()
            ]
        )

    def _or_else(self, path: str, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            self.request_paths.append(path)
            other = self.answers.get(path)
            return other() if other is not None else await answer(request)

        return endpoint

    async def _configuration(self, request: Request) -> Response:
        document = {
            "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize", "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys", "userinfo_endpoint": f"{self.issuer}/userinfo", "response_types_supported": ["code"],
        }  # fmt: skip
        return JSONResponse(document | self.discovery)

    async def _authorize(self, request: Request) -> Response:
        payload = dict(request.query_params)
        assert payload["response_type"] == "code"
        assert payload["client_id"] == CLIENT
        assert payload["code_challenge_method"] == "S256"
        assert "openid" in payload["scope"].split()
        self.authorizations.append(payload)
        code = secrets.token_urlsafe(16)
        self.codes[code] = payload
        return RedirectResponse(
            f"{payload['redirect_uri']}?{urlencode({'code': code, 'state': payload['state']})}", 303
        )

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        authorization = self.codes.pop(form.get("code", ""), None)  # once
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        client, _, secret = base64.b64decode(credentials).decode().partition(":")
        setting = (
            (unquote(client), unquote(secret))
            if scheme == "Basic"
            else (form.get("client_id"), form.get("client_secret"))
        )
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            authorization is None
            or setting != (CLIENT, SECRET)
            or form.get("grant_type") != "authorization_code"
            or form.get("redirect_uri") != authorization["redirect_uri"]
            or challenge.rstrip(b"=").decode() != authorization["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": self.user,
            "aud": CLIENT,
            "exp": now + 300,
            "iat": now,
            "nonce": authorization["nonce"],
        }
        if "max_age" in authorization:
            claims["auth_time"] = now
        claims = {name: value for name, value in (claims | self.claims).items() if value is not None}
        return JSONResponse(
            {
                "access_token": f"access-{self.user}",
                "token_type": "Bearer",
                "id_token": (self.sign or self.sign_claims)(claims),
                **self.token,
            }
        )

    async def _keys(self, request: Request) -> Response:
        return JSONResponse(self.keys.as_dict())

    async def _userinfo(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer access-{self.user}"
        return JSONResponse({"sub": self.user, **self.userinfo})


def new_keys() -> KeySet:
    """Return a key for signatures, as a provider has it."""
    return KeySet([RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)])


@contextmanager
def running_institute(folder) -> Iterator[Institute]:
    """Serve a provider from a thread."""
    bound = bound_socket("127.0.0.1", 0)
    certificate = certificate_for("127.0.0.1", folder, "institute")  # to browsers another site than a lab on localhost
    institute = Institute(f"https://127.0.0.1:{bound.getsockname()[1]}", certificate.trust, new_keys())
    with serve_over_tls(institute.app(), bound, certificate):
        yield institute

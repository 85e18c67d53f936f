"""What comes back from a browser or a provider is not believed: states, codes, tokens, keys, addresses, answers."""

import asyncio
import base64
import json
import time
from urllib.parse import urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from loratory.engine.accounts import oidc
from loratory.engine.accounts.oidc import Provider
from loratory.ui.front.oidc import ROUND_COOKIE
from tests.ui.front.institute import CLIENT, SECRET
from tests.ui.front.lab import running_lab
from tests.ui.front.oidc.rounds import (
    come_back,
    go,
    log_of,
    refusal_of,
    settings_of,
    start,
    visit,
)


@pytest.fixture(params=["lab", "space"])
def either(request, lab, space_lab):
    """Each of them; tokens, keys and answers are checked by the same code, so these are tried with the first alone."""
    return {"lab": lab, "space": space_lab}[request.param]


def test_a_state_is_used_once_and_a_code_too(either, institute):
    with either.browser() as browser:
        values = visit(institute, start(browser))
        cookie = browser.cookies[ROUND_COOKIE]
        assert come_back(browser, values).status_code == 303
    with either.browser() as replay:
        replay.cookies.set(ROUND_COOKIE, cookie)
        assert refusal_of(either, replay, come_back(replay, values))
        other = visit(institute, start(replay))
        assert refusal_of(either, replay, come_back(replay, {**other, "code": values["code"]}))


def test_a_round_that_began_in_another_browser_signs_no_one_in(either, institute):
    with either.browser() as attacker, either.browser() as victim:
        values = visit(institute, start(attacker))
        start(victim)  # has a cookie of its own
        assert refusal_of(either, victim, come_back(victim, values))
        assert refusal_of(either, attacker, come_back(attacker, values)), "used up"
        victim.cookies.delete(ROUND_COOKIE)
        assert refusal_of(either, victim, come_back(victim, visit(institute, start(attacker))))


@pytest.mark.parametrize(
    "change", [{"state": "x" * 43}, {"state": ""}, {"state": None}, {"code": ""}, {"code": None}, {"code": "x" * 5_000}]
)
def test_a_state_or_code_that_is_not_the_one_is_refused(either, institute, change):
    with either.browser() as browser:
        values = {**visit(institute, start(browser)), **change}
        assert refusal_of(
            either, browser, come_back(browser, {name: value for name, value in values.items() if value is not None})
        )


def test_parameters_that_come_twice_are_refused(either, institute):
    with either.browser() as browser:
        values = visit(institute, start(browser))
        assert refusal_of(either, browser, come_back(browser, [*values.items(), ("state", "other")]))
        values = visit(institute, start(browser))
        assert refusal_of(either, browser, come_back(browser, [*values.items(), ("code", "other")]))


def test_an_error_of_the_provider_is_reported_in_our_words(either, institute):
    with either.browser() as browser:
        values = visit(institute, start(browser))
        forgery = {"state": values["state"], "error": "access_denied", "error_description": "<b>call 555-1234</b>"}
        answer = come_back(browser, forgery)
        assert refusal_of(either, browser, answer)
        assert "555" not in answer.text
        assert "did not sign you in" in answer.text


def test_an_answer_of_another_provider_is_refused(either, institute):
    with either.browser() as browser:
        values = visit(institute, start(browser))
        assert refusal_of(either, browser, come_back(browser, {**values, "iss": "https://evil.example"}))
        institute.discovery["authorization_response_iss_parameter_supported"] = True
        assert refusal_of(either, browser, come_back(browser, visit(institute, start(browser))))
        values = visit(institute, start(browser))
        assert come_back(browser, {**values, "iss": institute.issuer}).status_code == 303
    assert institute.request_paths.count("/token") == 1


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example", "/demo"])
def test_no_one_is_led_elsewhere(either, institute, target):
    with either.browser() as browser:
        address = start(browser, next=target, redirect_uri=target, target=target)
        assert "evil" not in address
        answer = come_back(browser, {**visit(institute, address), "next": target, "redirect_uri": target})
        assert answer.headers["location"] == "/"


NOW = int(time.time())
WRONG_CLAIMS = {
    "another nonce": {"nonce": "x" * 43},
    "no nonce": {"nonce": None},
    "a list of nonces": {"nonce": ["x"]},
    "a broken nonce": {"nonce": "\ud800"},
    "another issuer": {"iss": "https://evil.example"},
    "a list of issuers": {"iss": ["https://evil.example"]},
    "no issuer": {"iss": None},
    "another audience": {"aud": "another-client"},
    "more audiences": {"aud": [CLIENT, "another-client"], "azp": CLIENT},
    "no audience": {"aud": None},
    "an empty audience": {"aud": []},
    "another party": {"azp": "another-client"},
    "an expired one": {"exp": NOW - 3_600},
    "no end": {"exp": None},
    "an end in text": {"exp": "2099"},
    "an endless one": {"exp": float("nan")},
    "one of tomorrow": {"iat": NOW + 86_400},
    "an old one": {"iat": NOW - 3_600},
    "no time": {"iat": None},
    "one for later": {"nbf": NOW + 86_400},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a number": {"sub": 4711},
    "a long subject": {"sub": "4711" + " " * 300},
    "a broken subject": {"sub": "4711\ud800"},
    "a subject with an end": {"sub": "4711\0"},
}  # fmt: skip


@pytest.mark.exhaustive(quick=5)
@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_an_id_token_with_wrong_claims_is_refused(lab, institute, name):
    institute.claims |= WRONG_CLAIMS[name]
    with lab.browser() as browser:
        assert refusal_of(lab, browser, go(lab, institute, browser))
    person, kind, detail = log_of(lab)[-1]
    assert (person, kind) == ("", "sign-in failed")
    assert detail.startswith(f"{urlsplit(institute.issuer).netloc}: ")


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned_token(algorithm):
    return lambda institute, claims: f"{part({'alg': algorithm, 'kid': institute.keys.keys[0].kid})}.{part(claims)}."


def with_public_key(institute, claims):
    """HS256, with the public key as the secret that both know."""
    key = institute.keys.keys[0]
    return jwt.encode({"alg": "HS256", "kid": key.kid}, claims, OctKey.import_key(key.as_pem(private=False)), ["HS256"])


def with_client_secret(institute, claims):
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET), ["HS256"])


def with_own_key(institute, claims):
    """Sign with a key of the attacker under the provider's name, also in the header."""
    own = RSAKey.generate_key(2048)
    header = {"alg": "RS256", "kid": institute.keys.keys[0].kid, "jwk": own.as_dict(private=False)}
    return jwt.encode(header, claims, own)


def with_unknown_key(institute, claims):
    return jwt.encode({"alg": "RS256", "kid": "../../other"}, claims, RSAKey.generate_key(2048))


def altered_token(institute, claims):
    head, _, signature = institute.sign_claims(claims).split(".")
    return f"{head}.{part({**claims, 'sub': '4711', 'extra': True})}.{signature}"


def critical(institute, claims):
    key = institute.keys.keys[0]
    head = part({"alg": "RS256", "kid": key.kid, "crit": ["exp"], "exp": 1})
    return f"{head}.{'.'.join(institute.sign_claims(claims).split('.')[1:])}"


FORGERIES = {
    "none": unsigned_token("none"), "None": unsigned_token("None"), "no algorithm": unsigned_token(""), "a list": unsigned_token(["RS256"]),
    "no signature": unsigned_token("RS256"), "HS256 with the public key": with_public_key, "HS256 with the secret": with_client_secret,
    "a key of one's own": with_own_key, "an unknown key": with_unknown_key, "other claims": altered_token, "critical": critical,
    "not a token": lambda institute, claims: "x.y.z", "nothing": lambda institute, claims: "", "encrypted": lambda institute, claims: "a.b.c.d.e",
    "not an object": lambda institute, claims: institute.sign_claims(claims).replace(".", "..", 1),
}  # fmt: skip


@pytest.mark.exhaustive(quick=5)
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_id_token_is_refused(lab, institute, name):
    institute.sign = lambda claims: FORGERIES[name](institute, claims)
    with lab.browser() as browser:
        assert refusal_of(lab, browser, go(lab, institute, browser))


def test_a_symmetric_key_that_the_provider_publishes_is_not_used(lab, institute):
    key = OctKey.generate_key(256)
    published = {"keys": [{**key.as_dict(), "kid": "shared"}, *institute.keys.as_dict()["keys"], {"kty": "RSA"}, {}]}
    institute.answers["/keys"] = lambda: JSONResponse(published)
    institute.sign = lambda claims: jwt.encode({"alg": "HS256", "kid": "shared"}, claims, key, ["HS256"])
    with lab.browser() as browser:
        assert refusal_of(lab, browser, go(lab, institute, browser))
        institute.sign = None
        assert go(lab, institute, browser).status_code == 303, "the others still hold"


def test_a_rotated_key_works_at_once_and_the_old_one_no_longer(lab, institute):
    old = institute.keys
    institute.rotate()
    with lab.browser() as browser:
        assert go(lab, institute, browser).status_code == 303
    institute.sign = lambda claims: jwt.encode({"alg": "RS256", "kid": old.keys[0].kid}, claims, old.keys[0])
    with lab.browser() as browser:
        assert refusal_of(lab, browser, go(lab, institute, browser))


# A provider that is ill, or not the one that it was.


def large():
    async def drip():
        for _ in range(100):
            yield b" " * 65_536

    return StreamingResponse(drip(), media_type="application/json")


ANSWERS = {
    "an error": lambda: Response("<b>secret</b>", 500),
    "a redirect": lambda: RedirectResponse("http://127.0.0.1:1/", 302),
    "not JSON": lambda: Response("<html>"),
    "a list": lambda: JSONResponse([]),
    "deep": lambda: Response("[" * 200_000),
    "large": large,
    "compressed": lambda: Response(b"\x1f\x8b" + b"\0" * 100, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.exhaustive(quick=5)
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_makes_no_sense_signs_no_one_in(lab, institute, path, name):
    with lab.browser() as browser:
        institute.answers[path] = ANSWERS[name]
        answer = start(browser) if path.startswith("/.") else go(lab, institute, browser)
        assert refusal_of(lab, browser, answer)
        assert "secret" not in answer.text


def test_a_provider_that_is_slow_is_not_waited_for(lab, institute, monkeypatch):
    monkeypatch.setattr(oidc, "_TIMEOUT_SECONDS", 0.5)

    def slow():
        async def drip():
            while True:
                await asyncio.sleep(0.1)
                yield b" "

        return StreamingResponse(drip())

    institute.answers["/.well-known/openid-configuration"] = slow
    with lab.browser() as browser:
        answer = start(browser)
        assert "does not answer" in answer.text
        assert browser.get("/sign-in").status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"}, {"issuer": None}, {"token_endpoint": "http://localhost/token"}, {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"}, {"authorization_endpoint": 'https://localhost/"><script>'},
        {"token_endpoint": "https://user@localhost/"}, {"token_endpoint": None}, {"userinfo_endpoint": "gopher://localhost"},
        {"token_endpoint_auth_methods_supported": 5},
    ],
)  # fmt: skip
def test_a_configuration_that_leads_elsewhere_is_refused(lab, institute, change):
    institute.discovery |= change
    with lab.browser() as browser:
        assert refusal_of(lab, browser, start(browser))
    assert institute.request_paths == ["/.well-known/openid-configuration"]


def test_the_issuer_is_compared_letter_by_letter(institute, lab):
    institute.discovery["issuer"] = f"{institute.issuer}/"
    with lab.browser() as browser:
        assert refusal_of(lab, browser, start(browser))


def test_a_secret_goes_into_the_body_where_the_provider_asks_for_that(lab, institute):
    institute.discovery["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    with lab.browser() as browser:
        assert go(lab, institute, browser).status_code == 303


def test_beginning_is_throttled_by_address(tmp_path, institute, within_a_moment):
    with (
        running_lab(
            tmp_path, provider_at=lambda origin: Provider(settings_of(institute), origin, institute.trust)
        ) as lab,
        lab.browser() as browser,
    ):
        answers = [browser.post("/sign-in/with", data={"for": "sign in"}) for _ in range(22)]
        assert [answer.status_code for answer in answers[-2:]] == [429, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
    assert len(institute.request_paths) == 20

"""People sign in, join, link and confirm with an account of an institute; nothing else that comes back lets anyone in."""

import asyncio
import base64
import json
import re
import time
from html import unescape
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from pydantic import SecretStr
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from engine.accounts import oidc
from engine.accounts.audit import AuditLog
from engine.accounts.identities import Identities, Identity
from engine.accounts.lab import audit_log_path
from engine.accounts.oidc import Provider
from engine.accounts.oidc_settings import MemberRule, OidcSettings
from engine.accounts.throttle import SignInThrottle
from tests.ui.front.institute import CLIENT, SECRET, running_institute
from tests.ui.front.lab import PASSWORD, running_lab
from tests.ui.front.test_gate import OF_A_PROVIDER
from ui.front import serve
from ui.front.gate import COOKIE
from ui.front.oidc import ROUND_COOKIE, OidcPages

NAVIGATION = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
RULE = MemberRule(email_domains=("example.edu",), groups=("gpu-lab",))


@pytest.fixture(scope="module")
def throttle():
    """The one of all labs here: all tests have one address, which each of them uses afresh."""
    one = SignInThrottle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "SignInThrottle", lambda: one)
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with running_institute(tmp_path_factory.mktemp("institute")) as running:
        yield running


@pytest.fixture
def institute(served, throttle):
    served.reset()
    throttle._limiter.storage.reset()
    yield served
    served.reset()


def settings_of(institute, **values):
    return OidcSettings(
        issuer=institute.issuer, client_id=CLIENT, client_secret=SecretStr(SECRET), name="The Institute", **values
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory, served, throttle):
    def provider_at(origin):
        return Provider(settings_of(served), origin, served.trust)

    with running_lab(tmp_path_factory.mktemp("lab"), provider_at=provider_at) as running:
        running.add("root", "admin")
        running.add("ann")
        identities(running).link(running.accounts.person("ann"), Identity(served.issuer, "4711"))
        yield running


@pytest.fixture(scope="module")
def open_lab(tmp_path_factory, served, throttle):
    """One that lets in verified addresses of example.edu in the group gpu-lab."""

    def provider_at(origin):
        return Provider(settings_of(served, members=RULE), origin, served.trust)

    with running_lab(tmp_path_factory.mktemp("open"), provider_at=provider_at) as running:
        running.add("root", "admin")
        yield running


def identities(lab):
    return Identities(lab.accounts._database, lab.accounts)


def start(browser, purpose="sign in", **form):
    """Press the button; returns the address at the provider, or the answer where there is none."""
    browser.cookies.delete(ROUND_COOKIE)
    answer = browser.post("/sign-in/with", data={"for": purpose, **form})
    found = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', answer.text)
    return unescape(found[1]) if found else answer


def visit(institute, address):
    """Go to the provider, which sends the browser back; returns what it comes back with."""
    with httpx.Client(verify=institute.trust) as outside:
        answer = outside.get(address)
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


def come_back(browser, values):
    """Come back as browsers do: in a navigation from another site, without an origin."""
    origin = browser.headers.pop("Origin", None)
    try:
        return browser.get(f"/oidc/callback?{urlencode(values)}", headers=NAVIGATION)
    finally:
        if origin is not None:
            browser.headers["Origin"] = origin


def go(lab, institute, browser, purpose="sign in", **form):
    address = start(browser, purpose, **form)
    assert isinstance(address, str), address.text
    return come_back(browser, visit(institute, address))


def person_in(browser):
    """Whose account page a browser gets; None for none."""
    found = re.search(r"Signed in as <b>([^<]+)</b>", browser.get("/account").text)
    return found[1] if found else None


def log_of(lab):
    return [(one.person, one.kind, one.detail) for one in AuditLog(audit_log_path(lab.home)).entries()]


def refused(lab, browser, answer):
    """Whether an answer lets nobody in and says nothing of tokens."""
    assert answer.status_code in (400, 403), answer.text
    assert COOKIE not in answer.cookies
    assert "eyJ" not in answer.text
    assert "Traceback" not in answer.text
    assert person_in(browser) is None
    return True


def test_a_linked_person_signs_in_without_a_password(lab, institute):
    with lab.browser() as browser:
        page = browser.get("/sign-in").text
        assert page.index("Sign in with The Institute") < page.index("Password")
        answer = go(lab, institute, browser)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert person_in(browser) == "ann"
        cookies = answer.headers.get_list("set-cookie")

    (session,) = (cookie for cookie in cookies if cookie.startswith(f"{COOKIE}="))
    assert all(word in session for word in ("Secure", "HttpOnly", "Path=/", "SameSite=lax"))
    assert any(cookie.startswith(f'{ROUND_COOKIE}=""') for cookie in cookies), "the other one has done its work"
    assert log_of(lab)[-1] == ("ann", "signed in", urlsplit(institute.issuer).netloc)


def test_what_is_sent_to_the_provider_is_bound_to_this_sign_in(lab, institute):
    with lab.browser() as browser:
        addresses = [start(browser), start(browser)]
        asked = [parse_qs(urlsplit(address).query) for address in addresses]
        cookie = browser.post("/sign-in/with", data={"for": "sign in"}).headers["set-cookie"]
    for name in ("state", "nonce", "code_challenge"):
        assert asked[0][name] != asked[1][name]
        assert len(asked[0][name][0]) >= 43
    assert asked[0]["redirect_uri"] == [f"{lab.url}/oidc/callback"]
    assert SECRET not in addresses[0]
    assert cookie.startswith("__Host-")
    assert all(word in cookie for word in ("Secure", "HttpOnly", "Path=/", "SameSite=lax", "Max-Age=600"))


def test_an_account_of_the_provider_alone_opens_nothing(lab, institute):
    institute.user = "stranger"
    institute.claims |= {
        "preferred_username": "root",
        "email": "root@example.edu",
        "email_verified": True,
        "groups": ["gpu-lab"],
    }
    with lab.browser() as browser:
        answer = go(lab, institute, browser)
        assert refused(lab, browser, answer)
        assert "invitation" in answer.text
    assert "/userinfo" not in institute.asked
    assert {person.name for person in lab.accounts.people()} >= {"root", "ann"}


def test_an_invitation_is_accepted_with_an_account_of_the_provider(lab, institute):
    institute.user = "of-bea"
    invitation = lab.accounts.invite("guest", by="root")
    with lab.browser() as browser:
        assert "Continue with The Institute" in browser.get("/join").text
        answer = go(lab, institute, browser, "join", code=invitation.token, name="Bea", password="", again="")
        assert answer.headers["location"] == "/"
        assert person_in(browser) == "bea"
        assert "This account has none" in browser.get("/account").text
        again = start(browser, "join", code=invitation.token, name="bea-two")
        assert again.status_code == 400
    assert lab.accounts.person("bea").role == "guest"
    with lab.browser() as later:
        go(lab, institute, later)
        assert person_in(later) == "bea"
    assert invitation.token not in audit_log_path(lab.home).read_text()


def test_a_name_that_is_taken_leaves_the_invitation(lab, institute):
    institute.user = "another"
    invitation = lab.accounts.invite("member", by="root")
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser, "join", code=invitation.token, name="ann"))
        answer = start(browser, "join", code=invitation.token, name="../ann")
        assert answer.status_code == 400
    assert lab.accounts.find_invitation(invitation.token).role == "member"


def test_an_account_is_linked_with_its_password_and_unlinked(lab, institute):
    lab.add("cid")
    institute.user = "of-cid"
    with lab.signed_in("cid") as cid:
        assert "Link The Institute" in cid.get("/account").text
        assert start(cid, "link", password="wrong " + PASSWORD).status_code == 400
        answer = go(lab, institute, cid, "link", password=PASSWORD)
        assert answer.headers["location"] == "/account?linked=1"
        assert "Unlink The Institute" in cid.get("/account").text
    with lab.browser() as browser:
        go(lab, institute, browser)
        assert person_in(browser) == "cid"
        assert browser.post("/account/unlink").headers["location"] == "/account?unlinked=1"
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser))
    kinds = [kind for person, kind, _ in log_of(lab) if person == "cid"]
    assert kinds == ["sign-in failed", "linked", "signed in", "unlinked"]


def test_the_account_of_another_person_is_not_linked(lab, institute):
    lab.add("dan")
    with lab.signed_in("dan") as dan:
        answer = go(lab, institute, dan, "link", password=PASSWORD)
        assert answer.status_code == 403
    assert identities(lab).person_of(Identity(institute.issuer, "4711")).name == "ann"


@pytest.mark.parametrize("purpose", ["link", "confirm"])
def test_a_round_belongs_to_the_session_that_began_it(lab, institute, purpose):
    with lab.signed_in("root") as root:
        values = visit(institute, start(root, purpose, password=PASSWORD))
        round_cookie = root.cookies[ROUND_COOKIE]
    with lab.signed_in("root") as other:
        other.cookies.set(ROUND_COOKIE, round_cookie)
        assert come_back(other, values).status_code == 403
    assert not identities(lab).is_linked(lab.accounts.person("root"), institute.issuer)


def test_without_a_session_nothing_is_linked_confirmed_or_unlinked(lab, institute):
    with lab.browser() as browser, lab.browser("A" * 43) as forged:
        for client in (browser, forged):
            for purpose in ("link", "confirm", "unknown", ""):
                assert start(client, purpose, password=PASSWORD).status_code == 400
            assert client.post("/account/unlink").headers["location"] == "/sign-in"
    assert institute.asked == []


def test_a_person_who_was_disabled_or_removed_stays_out(lab, institute):
    person = lab.add("eva")
    institute.user = "of-eva"
    identities(lab).link(person, Identity(institute.issuer, "of-eva"))
    lab.accounts.disable("eva")
    with lab.browser() as browser:
        disabled = go(lab, institute, browser)
        assert refused(lab, browser, disabled)
    lab.accounts.remove("eva")
    with lab.browser() as browser:
        removed = go(lab, institute, browser)
        assert refused(lab, browser, removed)
    institute.user = "unknown"
    with lab.browser() as browser:
        assert go(lab, institute, browser).text == removed.text == disabled.text


def admin_of(lab, institute, name):
    institute.user = f"of-{name}"
    return identities(lab).accept(
        lab.accounts.invite("admin", by="").token, name, Identity(institute.issuer, f"of-{name}")
    )


def is_confirmed(lab, browser):
    return lab.sessions.is_confirmed(lab.sessions.find(browser.cookies[COOKIE]))


def test_an_admin_without_a_password_confirms_with_a_fresh_sign_in(lab, institute):
    admin_of(lab, institute, "flo")
    with lab.browser() as browser:
        go(lab, institute, browser)
        assert not is_confirmed(lab, browser), "the provider may have let its own session do"
        assert "Confirm with The Institute" in browser.get("/account").text
        answer = go(lab, institute, browser, "confirm")
        assert answer.headers["location"] == "/account?confirmed=1"
        assert is_confirmed(lab, browser)
    assert (institute.sent[-1]["prompt"], institute.sent[-1]["max_age"]) == ("login", "0")


@pytest.mark.parametrize("moment", [None, 0, -3_600, "now", True, [1]])
def test_a_sign_in_at_the_provider_that_is_not_fresh_confirms_nothing(lab, institute, moment):
    name = f"old-{str(moment).strip('[]-').lower()}"
    admin_of(lab, institute, name)
    with lab.browser() as browser:
        go(lab, institute, browser)
        institute.claims["auth_time"] = int(time.time()) + moment if moment == -3_600 else moment
        answer = go(lab, institute, browser, "confirm")
        assert answer.status_code == 403
        assert "does not confirm" in answer.text
        assert not is_confirmed(lab, browser)


def test_the_account_of_another_confirms_nothing(lab, institute):
    admin_of(lab, institute, "gus")
    with lab.browser() as browser:
        go(lab, institute, browser)
        institute.user = "4711"
        assert go(lab, institute, browser, "confirm").status_code == 403
        assert not is_confirmed(lab, browser)


def test_a_reset_ends_the_link(lab, institute):
    person = lab.add("hal")
    institute.user = "of-hal"
    identities(lab).link(person, Identity(institute.issuer, "of-hal"))
    invitation = lab.accounts.reset("hal", by="root")
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser))
        go(lab, institute, browser, "join", code=invitation.token, name="")
        assert person_in(browser) == "hal"


def test_the_routes_of_a_provider_are_a_list_that_was_decided(lab, institute):
    pages = OidcPages(
        lab.accounts, lab.sessions, SignInThrottle(), None, None, Provider(settings_of(institute), lab.url)
    )
    assert pages.paths == set(OF_A_PROVIDER) == {route.path for route in pages.routes()}
    with lab.browser() as browser:
        for path in OF_A_PROVIDER:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                answer = browser.request(method, path)
                assert answer.status_code in (303, 400, 405), (method, path)
                assert answer.headers.get("location", "/sign-in") == "/sign-in"
                assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert institute.asked == []


# What comes back is not believed.


def test_a_state_is_used_once_and_a_code_too(lab, institute):
    with lab.browser() as browser:
        values = visit(institute, start(browser))
        cookie = browser.cookies[ROUND_COOKIE]
        assert come_back(browser, values).status_code == 303
    with lab.browser() as replay:
        replay.cookies.set(ROUND_COOKIE, cookie)
        assert refused(lab, replay, come_back(replay, values))
        other = visit(institute, start(replay))
        assert refused(lab, replay, come_back(replay, {**other, "code": values["code"]}))


def test_a_round_that_began_in_another_browser_signs_nobody_in(lab, institute):
    with lab.browser() as attacker, lab.browser() as victim:
        values = visit(institute, start(attacker))
        start(victim)  # has a cookie of its own
        assert refused(lab, victim, come_back(victim, values))
        assert refused(lab, attacker, come_back(attacker, values)), "used up"
        victim.cookies.delete(ROUND_COOKIE)
        assert refused(lab, victim, come_back(victim, visit(institute, start(attacker))))


@pytest.mark.parametrize(
    "change", [{"state": "x" * 43}, {"state": ""}, {"state": None}, {"code": ""}, {"code": None}, {"code": "x" * 5_000}]
)
def test_a_state_or_code_that_is_not_the_one_is_refused(lab, institute, change):
    with lab.browser() as browser:
        values = {**visit(institute, start(browser)), **change}
        assert refused(
            lab, browser, come_back(browser, {name: value for name, value in values.items() if value is not None})
        )


def test_parameters_that_come_twice_are_refused(lab, institute):
    with lab.browser() as browser:
        values = visit(institute, start(browser))
        assert refused(lab, browser, come_back(browser, [*values.items(), ("state", "other")]))
        values = visit(institute, start(browser))
        assert refused(lab, browser, come_back(browser, [*values.items(), ("code", "other")]))


def test_an_error_of_the_provider_is_reported_in_our_words(lab, institute):
    with lab.browser() as browser:
        values = visit(institute, start(browser))
        forged = {"state": values["state"], "error": "access_denied", "error_description": "<b>call 555-1234</b>"}
        answer = come_back(browser, forged)
        assert refused(lab, browser, answer)
        assert "555" not in answer.text
        assert "did not sign you in" in answer.text


def test_an_answer_of_another_provider_is_refused(lab, institute):
    with lab.browser() as browser:
        values = visit(institute, start(browser))
        assert refused(lab, browser, come_back(browser, {**values, "iss": "https://evil.example"}))
        institute.discovery["authorization_response_iss_parameter_supported"] = True
        assert refused(lab, browser, come_back(browser, visit(institute, start(browser))))
        values = visit(institute, start(browser))
        assert come_back(browser, {**values, "iss": institute.issuer}).status_code == 303
    assert institute.asked.count("/token") == 1


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example"])
def test_nobody_is_led_elsewhere(lab, institute, target):
    with lab.browser() as browser:
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
    "an end that is no number": {"exp": "2099"},
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


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_an_id_token_with_wrong_claims_is_refused(lab, institute, name):
    institute.claims |= WRONG_CLAIMS[name]
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser))
    person, kind, detail = log_of(lab)[-1]
    assert (person, kind) == ("", "sign-in failed")
    assert detail.startswith(f"{urlsplit(institute.issuer).netloc}: ")


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(algorithm):
    return lambda institute, claims: f"{part({'alg': algorithm, 'kid': institute.keys.keys[0].kid})}.{part(claims)}."


def with_public_key(institute, claims):
    """HS256, with the public key as the secret that both know."""
    key = institute.keys.keys[0]
    return jwt.encode({"alg": "HS256", "kid": key.kid}, claims, OctKey.import_key(key.as_pem(private=False)), ["HS256"])


def with_client_secret(institute, claims):
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET), ["HS256"])


def with_own_key(institute, claims):
    """A key of the attacker under the provider's name, also in the header."""
    own = RSAKey.generate_key(2048)
    header = {"alg": "RS256", "kid": institute.keys.keys[0].kid, "jwk": own.as_dict(private=False)}
    return jwt.encode(header, claims, own)


def with_unknown_key(institute, claims):
    return jwt.encode({"alg": "RS256", "kid": "../../other"}, claims, RSAKey.generate_key(2048))


def altered(institute, claims):
    head, _, signature = institute.signed(claims).split(".")
    return f"{head}.{part({**claims, 'sub': '4711', 'extra': True})}.{signature}"


def critical(institute, claims):
    key = institute.keys.keys[0]
    head = part({"alg": "RS256", "kid": key.kid, "crit": ["exp"], "exp": 1})
    return f"{head}.{'.'.join(institute.signed(claims).split('.')[1:])}"


FORGERIES = {
    "none": unsigned("none"), "None": unsigned("None"), "no algorithm": unsigned(""), "a list": unsigned(["RS256"]),
    "no signature": unsigned("RS256"), "HS256 with the public key": with_public_key, "HS256 with the secret": with_client_secret,
    "a key of one's own": with_own_key, "an unknown key": with_unknown_key, "other claims": altered, "critical": critical,
    "not a token": lambda institute, claims: "x.y.z", "nothing": lambda institute, claims: "", "encrypted": lambda institute, claims: "a.b.c.d.e",
    "not an object": lambda institute, claims: institute.signed(claims).replace(".", "..", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_id_token_is_refused(lab, institute, name):
    institute.sign = lambda claims: FORGERIES[name](institute, claims)
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser))


def test_a_symmetric_key_that_the_provider_publishes_is_not_used(lab, institute):
    key = OctKey.generate_key(256)
    published = {"keys": [{**key.as_dict(), "kid": "shared"}, *institute.keys.as_dict()["keys"], {"kty": "RSA"}, {}]}
    institute.answers["/keys"] = lambda: JSONResponse(published)
    institute.sign = lambda claims: jwt.encode({"alg": "HS256", "kid": "shared"}, claims, key, ["HS256"])
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser))
        institute.sign = None
        assert go(lab, institute, browser).status_code == 303, "the others still hold"


def test_a_rotated_key_works_at_once_and_the_old_one_no_longer(lab, institute):
    old = institute.keys
    institute.rotate()
    with lab.browser() as browser:
        assert go(lab, institute, browser).status_code == 303
    institute.sign = lambda claims: jwt.encode({"alg": "RS256", "kid": old.keys[0].kid}, claims, old.keys[0])
    with lab.browser() as browser:
        assert refused(lab, browser, go(lab, institute, browser))


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


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_makes_no_sense_signs_nobody_in(lab, institute, path, name):
    with lab.browser() as browser:
        institute.answers[path] = ANSWERS[name]
        answer = start(browser) if path.startswith("/.") else go(lab, institute, browser)
        assert refused(lab, browser, answer)
        assert "secret" not in answer.text


def test_a_provider_that_is_slow_is_not_waited_for(lab, institute, monkeypatch):
    monkeypatch.setattr(oidc, "_PATIENCE_SECONDS", 0.5)

    def slow():
        async def drip():
            while True:
                await asyncio.sleep(0.1)
                yield b" "

        return StreamingResponse(drip())

    institute.answers["/.well-known/openid-configuration"] = slow
    with lab.browser() as browser:
        began = time.monotonic()
        answer = start(browser)
        assert "does not answer" in answer.text
        assert time.monotonic() - began < 10
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
        assert refused(lab, browser, start(browser))
    assert institute.asked == ["/.well-known/openid-configuration"]


def test_the_issuer_is_compared_letter_by_letter(institute, lab):
    institute.discovery["issuer"] = f"{institute.issuer}/"
    with lab.browser() as browser:
        assert refused(lab, browser, start(browser))


def test_a_secret_goes_into_the_body_where_the_provider_asks_for_that(lab, institute):
    institute.discovery["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    with lab.browser() as browser:
        assert go(lab, institute, browser).status_code == 303


def test_beginning_is_throttled_by_address(tmp_path, institute):
    with (
        running_lab(
            tmp_path, provider_at=lambda origin: Provider(settings_of(institute), origin, institute.trust)
        ) as lab,
        lab.browser() as browser,
    ):
        answers = [browser.post("/sign-in/with", data={"for": "sign in"}) for _ in range(22)]
        assert [answer.status_code for answer in answers[-2:]] == [429, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
    assert len(institute.asked) == 20


# An admin's rule.

ADMITTED = {"email": "ivy@example.edu", "email_verified": True, "groups": ["gpu-lab"], "preferred_username": "Ivy.Lee"}


def test_a_rule_makes_members_of_those_to_whom_all_of_it_applies(open_lab, institute):
    institute.user = "of-ivy"
    institute.userinfo |= ADMITTED
    with open_lab.browser() as browser:
        assert go(open_lab, institute, browser).headers["location"] == "/"
        assert person_in(browser) == "ivy-lee"
    assert open_lab.accounts.person("ivy-lee").role == "member"
    assert "email" in institute.sent[-1]["scope"].split()
    institute.userinfo.clear()
    with open_lab.browser() as browser:
        go(open_lab, institute, browser)
        assert person_in(browser) == "ivy-lee", "known from now on, whatever the rule says"


@pytest.mark.parametrize("way", ["claims", "userinfo"])
@pytest.mark.parametrize(
    "change",
    [
        {"email_verified": False}, {"email_verified": None}, {"email_verified": "true"}, {"email_verified": 1},
        {"email": "eve@evil.example"}, {"email": "eve@sub.example.edu"}, {"email": "eve@example.edu.evil.example"},
        {"email": "example.edu@evil.example"}, {"email": ["ivy@example.edu"]}, {"email": None},
        {"groups": ["other"]}, {"groups": "gpu-lab"}, {"groups": None}, {"groups": [["gpu-lab"]]}, {"groups": ["GPU-Lab"]},
    ],
)  # fmt: skip
def test_a_rule_lets_in_nobody_else(open_lab, institute, way, change):
    institute.user = "of-eve"
    getattr(institute, way).update(ADMITTED | change)
    with open_lab.browser() as browser:
        assert refused(open_lab, browser, go(open_lab, institute, browser))
    assert not identities(open_lab).was_linked(Identity(institute.issuer, "of-eve"))


def test_an_address_is_not_verified_by_another_source(open_lab, institute):
    institute.user = "of-kim"
    institute.claims |= {"email": "kim@example.edu", "groups": ["gpu-lab"]}
    institute.userinfo |= {"email": "kim@evil.example", "email_verified": True}
    with open_lab.browser() as browser:
        assert refused(open_lab, browser, go(open_lab, institute, browser))


def test_what_is_told_about_another_person_lets_nobody_in(open_lab, institute):
    institute.user = "of-liz"
    institute.userinfo |= {**ADMITTED, "sub": "of-ivy"}
    with open_lab.browser() as browser:
        assert refused(open_lab, browser, go(open_lab, institute, browser))


def test_the_name_of_an_admin_gives_a_stranger_another_one(open_lab, institute):
    institute.user = "of-mallory"
    institute.userinfo |= {**ADMITTED, "preferred_username": "root"}
    with open_lab.browser() as browser:
        go(open_lab, institute, browser)
        assert person_in(browser) == "root-2"
    assert open_lab.accounts.person("root-2").role == "member"


def test_a_person_who_was_removed_does_not_come_back_by_the_rule(open_lab, institute):
    institute.user = "of-ned"
    institute.userinfo |= {**ADMITTED, "preferred_username": "ned"}
    with open_lab.browser() as browser:
        go(open_lab, institute, browser)
        assert person_in(browser) == "ned"
    open_lab.accounts.remove("ned")
    with open_lab.browser() as browser:
        assert refused(open_lab, browser, go(open_lab, institute, browser))
    assert {person.name for person in open_lab.accounts.people()}.isdisjoint({"ned", "ned-2"})


# Nothing secret is anywhere.


def test_secrets_tokens_and_codes_are_in_no_page_log_or_file(lab, institute, capfd):
    with lab.browser() as browser:
        address = start(browser)
        values = visit(institute, address)
        answers = [come_back(browser, values), browser.get("/"), browser.get("/config"), browser.get("/account")]
        verifier_free = [
            parse_qs(urlsplit(address).query)["nonce"][0],
            values["code"],
            values["state"],
            "access-4711",
            SECRET,
            "eyJ",
        ]
    written = b"".join(
        path.read_bytes() for path in lab.home.root.rglob("*") if path.is_file() and path.suffix != ".key"
    )
    captured = "".join(capfd.readouterr())
    for secret in verifier_free:
        assert secret.encode() not in written
        assert secret not in captured
        assert not any(secret in answer.text for answer in answers[1:])
        assert secret == values["state"] or secret not in answers[0].text


def test_without_a_provider_there_is_no_way_and_no_button(tmp_path):
    with running_lab(tmp_path) as plain, plain.browser() as browser:
        plain.add("ann")
        assert "/sign-in/with" not in browser.get("/sign-in").text
        assert "/sign-in/with" not in browser.get("/join").text
        for answer in (
            browser.post("/sign-in/with", data={"for": "sign in"}),
            browser.get("/oidc/callback"),
            browser.post("/account/unlink"),
        ):
            assert answer.status_code == 401
        with plain.signed_in("ann") as ann:
            assert ann.post("/sign-in/with", data={"for": "link"}).status_code == 404
            assert ann.get("/oidc/callback").status_code == 404
            assert "/sign-in/with" not in ann.get("/account").text


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_pages_of_other_sites_begin_link_and_unlink_nothing(lab, institute, origin):
    with lab.signed_in("ann") as ann:
        for path in ("/sign-in/with", "/account/unlink"):
            for headers in ({"Origin": origin}, {"Sec-Fetch-Site": "cross-site", **NAVIGATION}):
                assert ann.post(path, data={"for": "link", "password": PASSWORD}, headers=headers).status_code == 403
        frame = {**NAVIGATION, "Sec-Fetch-Dest": "iframe"}
        assert ann.get("/oidc/callback?state=x&code=y", headers=frame).status_code == 403
    assert identities(lab).person_of(Identity(institute.issuer, "4711")).name == "ann"
    assert institute.asked == []

"""People sign in, join, link and confirm with an account of an institute, and no secret of it is seen anywhere."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest

from loratory.engine.accounts.identities import Identity
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.accounts.oidc import Provider
from loratory.engine.accounts.throttle import SignInThrottle
from loratory.ui.front.gate import COOKIE
from loratory.ui.front.oidc import ROUND_COOKIE, OidcPages
from tests.browser.real_server import contents_of
from tests.ui.front.institute import SECRET
from tests.ui.front.lab import PASSWORD, running_lab
from tests.ui.front.oidc.rounds import (
    come_back,
    go,
    identities,
    log_of,
    person_in,
    refusal_of,
    settings_of,
    start,
    visit,
)
from tests.ui.front.test_gate import OF_A_PROVIDER


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
        queries = [parse_qs(urlsplit(address).query) for address in addresses]
        cookie = browser.post("/sign-in/with", data={"for": "sign in"}).headers["set-cookie"]
    for name in ("state", "nonce", "code_challenge"):
        assert queries[0][name] != queries[1][name]
        assert len(queries[0][name][0]) >= 43
    assert queries[0]["redirect_uri"] == [f"{lab.url}/oidc/callback"]
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
        assert refusal_of(lab, browser, answer)
        assert "invitation" in answer.text
    assert "/userinfo" not in institute.request_paths
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
        assert refusal_of(lab, browser, go(lab, institute, browser, "join", code=invitation.token, name="ann"))
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
        assert refusal_of(lab, browser, go(lab, institute, browser))
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
    assert identities(lab).subject_of(lab.accounts.person("root"), institute.issuer) is None


def test_without_a_session_nothing_is_linked_confirmed_or_unlinked(lab, institute):
    with lab.browser() as browser, lab.browser("A" * 43) as guess:
        for client in (browser, guess):
            for purpose in ("link", "confirm", "unknown", ""):
                assert start(client, purpose, password=PASSWORD).status_code == 400
            assert client.post("/account/unlink").headers["location"] == "/sign-in"
    assert institute.request_paths == []


def test_a_person_who_was_disabled_or_removed_stays_out(lab, institute):
    person = lab.add("eva")
    institute.user = "of-eva"
    identities(lab).link(person, Identity(institute.issuer, "of-eva"))
    lab.accounts.disable("eva")
    with lab.browser() as browser:
        disabled = go(lab, institute, browser)
        assert refusal_of(lab, browser, disabled)
    lab.accounts.remove("eva")
    with lab.browser() as browser:
        removed = go(lab, institute, browser)
        assert refusal_of(lab, browser, removed)
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
    assert (institute.authorizations[-1]["prompt"], institute.authorizations[-1]["max_age"]) == ("login", "0")


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
        assert refusal_of(lab, browser, go(lab, institute, browser))
        go(lab, institute, browser, "join", code=invitation.token, name="")
        assert person_in(browser) == "hal"


def test_the_routes_of_a_provider_are_a_list_that_was_decided(lab, institute):
    pages = OidcPages(
        lab.accounts, lab.sessions, SignInThrottle(), None, None, Provider(settings_of(institute), lab.url)
    )
    assert {route.path for route in pages.routes()} == set(OF_A_PROVIDER)
    with lab.browser() as browser:
        for path in OF_A_PROVIDER:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                answer = browser.request(method, path)
                assert answer.status_code in (303, 400, 405), (method, path)
                assert answer.headers.get("location", "/sign-in") == "/sign-in"
                assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert institute.request_paths == []


def test_secrets_tokens_and_codes_are_in_no_page_log_or_file(lab, institute, capfd):
    with lab.browser() as browser:
        address = start(browser)
        values = visit(institute, address)
        answers = [come_back(browser, values), browser.get("/"), browser.get("/config"), browser.get("/account")]
        secrets = [
            parse_qs(urlsplit(address).query)["nonce"][0],
            values["code"],
            values["state"],
            "access-4711",
            SECRET,
            "eyJ",
        ]
    files = b"".join(content for path, content in contents_of(lab.home.root).items() if path.suffix != ".key")
    output = "".join(capfd.readouterr())
    for secret in secrets:
        assert secret.encode() not in files
        assert secret not in output
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

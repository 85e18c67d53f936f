"""One round to the institute and back, as a browser goes it."""

import re
from html import unescape
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from pydantic import SecretStr

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.identities import Identities
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.accounts.oidc_settings import MemberRule, OidcSettings
from loratory.ui.front.gate import COOKIE
from loratory.ui.front.oidc import ROUND_COOKIE
from tests.ui.front.institute import CLIENT, SECRET

NAVIGATION = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
RULE = MemberRule(email_domains=("example.edu",), groups=("gpu-lab",))


def settings_of(institute, **values):
    return OidcSettings(
        issuer=institute.issuer, client_id=CLIENT, client_secret=SecretStr(SECRET), name="The Institute", **values
    )


def identities(lab):
    return Identities(lab.accounts._database, lab.accounts)


def start(browser, purpose="sign in", **form):
    """Press the button; returns the address at the provider, or the answer where there is none."""
    browser.cookies.delete(ROUND_COOKIE)
    answer = browser.post("/sign-in/with", data={"for": purpose, **form})
    match = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', answer.text)
    return unescape(match[1]) if match else answer


def visit(institute, address):
    """Go to the provider, which sends the browser back; returns what it comes back with."""
    with httpx.Client(verify=institute.trust, timeout=300) as outside:
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
    match = re.search(r"Signed in as <b>([^<]+)</b>", browser.get("/account").text)
    return match[1] if match else None


def log_of(lab):
    return [(entry.person, entry.kind, entry.detail) for entry in AuditLog(audit_log_path(lab.home)).entries()]


def refusal_of(lab, browser, answer):
    """Return true for an answer that lets no one in and has no tokens; fail for any other."""
    assert answer.status_code in (400, 403), answer.text
    assert COOKIE not in answer.cookies
    assert "eyJ" not in answer.text
    assert "Traceback" not in answer.text
    assert person_in(browser) is None
    return True

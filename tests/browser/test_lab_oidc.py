"""The road through a provider on another site, in a real browser: cookies, policies and refreshes as browsers have them."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect
from pydantic import SecretStr

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.identities import Identities, Identity
from loratory.engine.accounts.oidc import Provider
from loratory.engine.accounts.oidc_settings import OidcSettings
from loratory.ui.front.gate import COOKIE
from tests.browser.chromium import PATIENCE_MS
from tests.ui.front.institute import CLIENT, SECRET, Institute, running_institute
from tests.ui.front.lab import PASSWORD, Lab, running_lab

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def institute(tmp_path_factory) -> Iterator[Institute]:
    with running_institute(tmp_path_factory.mktemp("institute")) as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory, institute) -> Iterator[Lab]:
    settings = OidcSettings(
        issuer=institute.issuer, client_id=CLIENT, client_secret=SecretStr(SECRET), name="The Institute"
    )

    def provider_at(origin: str) -> Provider:
        return Provider(settings, origin, institute.trust)

    with running_lab(tmp_path_factory.mktemp("lab"), provider_at=provider_at) as running:
        yield running


@pytest.fixture(params=[True, False], ids=["JavaScript", "no JavaScript"])
def context(browser: Browser, request) -> Iterator[BrowserContext]:
    context = browser.new_context(ignore_https_errors=True, java_script_enabled=request.param)
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


def test_a_person_joins_leaves_and_signs_in_again(lab, institute, context):
    institute.user = f"of-{id(context)}"
    name = f"ann-{id(context)}"
    invitation = lab.accounts.invite("member", by="root")
    page = context.new_page()
    page.goto(f"{lab.url}/join")
    page.get_by_label("Code of the invitation").fill(invitation.token)
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Continue with The Institute").click()
    expect(page).to_have_url(re.compile(r"/(model)?$"))
    page.goto(f"{lab.url}/account")
    expect(page.locator("main")).to_contain_text(f"Signed in as {name}, member.")

    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page).to_have_url(f"{lab.url}/sign-in")
    page.get_by_role("button", name="Sign in with The Institute").click()
    expect(page).to_have_url(re.compile(r"/(model)?$"))
    page.goto(f"{lab.url}/account")
    expect(page.locator("main")).to_contain_text(f"Signed in as {name}")


def test_an_account_is_linked_and_an_admin_confirms(lab, institute, context):
    institute.user = f"of-{id(context)}-admin"
    name = f"root-{id(context)}"
    person = lab.add(name, "admin")
    token = lab.sessions.begin(person, "", "", is_confirmed=False)
    context.add_cookies(
        [{"name": COOKIE, "value": token, "url": lab.url, "secure": True, "httpOnly": True, "sameSite": "Lax"}]
    )
    page = context.new_page()
    page.goto(f"{lab.url}/account")
    page.get_by_label("Current password").first.fill(PASSWORD)
    page.get_by_role("button", name="Link The Institute").click()
    expect(page.get_by_role("status")).to_contain_text("Linked.")
    database = open_database(lab.home)
    assert Identities(database, lab.accounts).person_of(Identity(institute.issuer, institute.user)).name == name
    database.close()
    page.get_by_role("button", name="Confirm with The Institute").click()
    expect(page.get_by_role("status")).to_contain_text("Confirmed.")
    assert lab.sessions.is_confirmed(lab.sessions.find(token))


def test_the_sign_in_page_has_the_provider_above_the_password(lab, browser):
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 390, "height": 844})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{lab.url}/sign-in")
    other = page.get_by_role("button", name="Sign in with The Institute").bounding_box()
    assert other["y"] < page.get_by_label("Password").bounding_box()["y"]
    assert other["x"] >= 0
    assert other["x"] + other["width"] <= 390
    context.close()

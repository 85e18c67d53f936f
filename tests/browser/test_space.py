"""A Space in a real browser: in the frame of its page, on its own address, for its creator and for strangers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, BrowserContext, FrameLocator, Page, expect

from loratory.engine.accounts.people import Person
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from loratory.engine.space.demo import Demo
from loratory.ui.front.demo import DemoPages
from loratory.ui.services import Services
from tests.browser.chromium import PATIENCE_MS, barriers, choose_model_and_data, open_tab
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.institute import Institute, running_institute
from tests.ui.front.lab import Lab, running_lab
from tests.ui.front.space.stand_in import CREATOR, UNSAVED, space_at

pytestmark = pytest.mark.browser

SPACE_PAGE = "https://huggingface.co/spaces/Ann/loratory"
EVIL_PAGE = "https://evil.example/"
DEMO_TITLE = "A finished run"


@pytest.fixture(scope="module")
def institute(tmp_path_factory) -> Iterator[Institute]:
    with running_institute(tmp_path_factory.mktemp("institute")) as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory, institute) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("space")
    demo = Demo.on_this_machine(LoratoryHome(root))
    story = InventedRun(steps=60, total_steps=60, floor=1.1, seconds_per_step=0.5)
    write_run(demo.runs, a_config(), story)

    def slowly(own: LoratoryHome, person: Person) -> Services:
        return replace(fake_services(own.root, seconds_per_step=20.0, home=own, owner=person.name), person=person)

    def make(origin: str):
        pages = DemoPages(demo, f"{SPACE_PAGE}?duplicate=true", f"{origin}/sign-in")
        return space_at(origin, institute.issuer, institute.trust, pages)

    with running_lab(root, slowly, space_at=make, behind_proxy=True) as running:
        yield running
    demo.close()


@contextmanager
def visitor(browser: Browser, lab: Lab, **options) -> Iterator[BrowserContext]:
    """Open a browser without third-party cookies; two other sites show the Space in a frame."""
    context = browser.new_context(ignore_https_errors=True, **options)
    context.set_default_timeout(PATIENCE_MS)
    # A public site may show a server of this machine only with a permission; the Space itself is public.
    context.grant_permissions(["local-network-access"])
    frame = f'<!doctype html><iframe src="{lab.url}/?__theme=light" allow="local-network-access" width="900" height="800"></iframe>'
    for page in (SPACE_PAGE, EVIL_PAGE):
        context.route(page, lambda route: route.fulfill(body=frame, content_type="text/html"))
    yield context
    context.close()


def open_framed(context: BrowserContext, address: str) -> tuple[Page, FrameLocator]:
    page = context.new_page()
    controls = {
        "enableThirdPartyCookieRestriction": True, "disableThirdPartyCookieMetadata": True,
        "disableThirdPartyCookieHeuristics": True,
    }  # fmt: skip
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCookieControls", controls)
    page.goto(address)
    return page, page.frame_locator("iframe")


def sign_in(page: Page, institute: Institute, subject: str, name: str) -> None:
    """Press the one button of the sign-in page, as a person of Hugging Face."""
    institute.user, institute.userinfo["preferred_username"] = subject, name
    page.get_by_role("button", name="Sign in with Hugging Face").click()


def test_the_frame_shows_the_demo_and_the_creator_trains_at_the_address(lab, institute, browser):
    UNSAVED["ann"] = "A restart of this Space would lose all of “first”."
    with visitor(browser, lab) as context:
        outer, frame = open_framed(context, SPACE_PAGE)
        expect(frame.locator("body")).to_contain_text(DEMO_TITLE)
        with context.expect_page() as opened:
            frame.get_by_role("link", name="Sign in with Hugging Face").click()
        page = opened.value
        expect(page).to_have_url(f"{lab.url}/sign-in")
        assert page.evaluate("window.opener") is None
        sign_in(page, institute, CREATOR, "Ann")
        expect(page).to_have_url(re.compile(r"/(model)?$"))
        expect(page.locator("#header .account")).to_contain_text("ann")
        expect(page.locator("body")).to_contain_text("would lose all of “first”")

        outer.reload()
        expect(frame.locator("body")).to_contain_text(DEMO_TITLE)
        expect(frame.locator("#header")).to_have_count(0)

        choose_model_and_data(page)
        open_tab(page, "Train")
        page.locator("#start").click()
        expect(page.locator("#run-heading")).to_contain_text("running")
        assert len(RunStore(lab.home, "ann").list()) == 1

        open_tab(page, "Lab")
        expect(page.locator("#lab-people")).to_contain_text("ann")
        expect(page.locator("body")).to_contain_text("People and organizations that Ann lists in LORATORY_ADMITTED")
        expect(page.locator("#lab-invite")).to_have_count(0)
        expect(page.locator("#lab-reset")).to_have_count(0)


def test_a_frame_of_any_other_site_stays_empty(lab, browser):
    with visitor(browser, lab) as context:
        page = context.new_page()
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
            page.goto(EVIL_PAGE)
        page.wait_for_function("document.readyState === 'complete'")
        assert DEMO_TITLE not in page.frames[-1].content()


@pytest.mark.parametrize("javascript", [True, False])
def test_a_stranger_reads_why_and_how_to_get_a_space_of_ones_own(lab, institute, browser, javascript):
    with visitor(browser, lab, java_script_enabled=javascript) as context:
        page = context.new_page()
        page.goto(lab.url)
        expect(page.locator("body")).to_contain_text(DEMO_TITLE)
        if javascript:
            assert barriers(page) == []
        page.goto(f"{lab.url}/sign-in")
        sign_in(page, institute, "sub-eve", "eve")
        expect(page.get_by_role("alert")).to_contain_text(
            "eve (id sub-eve) is not admitted to this Space. Ask Ann to add you"
        )
        expect(page.locator("body")).to_contain_text(DEMO_TITLE)
        duplicate = page.get_by_role("link", name="Duplicate this Space")
        assert duplicate.get_attribute("href") == f"{SPACE_PAGE}?duplicate=true"
        page.goto(lab.url)
        expect(page.locator("body")).to_contain_text(DEMO_TITLE)
        expect(page.locator("#header")).to_have_count(0)

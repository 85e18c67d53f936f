"""The road into a lab in a real browser, over real TLS: an invitation, a page of one's own, signing out and in again."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from engine.accounts.lab import read_settings
from engine.runs.store import RunStore
from engine.runs.supervision.lab import SNAPSHOT_FILE, QueueSnapshot, WaitingPlace
from tests.browser.chromium import let_fold_settle, open_tab
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.lab import PASSWORD, Lab, running_lab
from ui.front.gate import COOKIE

pytestmark = pytest.mark.browser

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        running.add("root", "admin")
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A browser that has not been here, and whose console must stay free of errors; it knows no test's certificate."""
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("response", lambda answer: errors.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    yield page
    context.close()
    assert errors == []


def choose_model_and_data(page: Page) -> None:
    page.locator("#catalog [data-pick]").first.click()
    expect(page.locator("#model-details .facts")).to_be_visible()
    open_tab(page, "Data")
    page.locator("#samples [data-pick]").first.click()
    expect(page.locator("#facts .facts")).to_be_visible()


def test_an_invited_person_joins_trains_leaves_and_comes_back(lab, page):
    invitation = lab.accounts.invite("member", by="root")

    page.goto(f"{lab.url}/join#{invitation.token}")
    expect(page).to_have_url(f"{lab.url}/join")  # the token does not stay in the address
    page.get_by_label("Name", exact=True).fill("ann")
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill(PASSWORD)
    page.get_by_role("button", name="Continue").click()

    expect(page.locator("#header .account")).to_contain_text("ann")
    choose_model_and_data(page)
    open_tab(page, "Train")
    page.locator("#start").click()
    expect(page.locator("#run-heading")).to_contain_text("running")
    runs = list((lab.home.runs / "ann").glob("2*"))
    assert len(runs) == 1

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(lab.url)
    expect(page).to_have_url(f"{lab.url}/sign-in")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Password").press("Enter")

    open_tab(page, "Runs")
    expect(page.locator("#runs-table")).to_contain_text(runs[0].name[-4:])


def test_signing_in_works_without_javascript(lab, browser):
    lab.add("bea")
    context = browser.new_context(ignore_https_errors=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(lab.url)
    page.get_by_label("Name").fill("bea")
    page.get_by_label("Password").fill("wrong " + PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("Wrong name or password.")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{lab.url}/")
    context.close()


def test_an_admin_invites_changes_a_role_after_the_password_and_drains(lab, page):
    page.goto(f"{lab.url}/sign-in")
    page.get_by_label("Name").fill("root")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    open_tab(page, "Lab")
    page.locator("#lab-invite").click()
    link = page.locator("#lab-result pre").inner_text()
    assert lab.accounts.find_invitation(link.partition("#")[2]).role == "member"
    lab.accounts.accept(link.partition("#")[2], "cid", PASSWORD)

    with lab.sessions._database.transaction() as connection:  # an hour later
        connection.execute("UPDATE sessions SET confirmed = confirmed - 3600 WHERE person = 'root'")
    open_tab(page, "Runs")
    open_tab(page, "Lab")
    expect(page.locator("#lab-result")).not_to_contain_text("/join")
    page.locator("#lab-people [data-pick=cid]").click()
    expect(page.locator("#lab-person h3")).to_have_text("cid")
    page.locator("#lab-role").get_by_text("guest").click()
    page.locator("#lab-save-role").click()
    expect(page.locator("#lab-confirm")).to_be_visible()
    assert lab.accounts.person("cid").role == "member"
    page.locator("#lab-password input").fill(PASSWORD)
    page.locator("#lab-confirm-button").click()
    expect(page.locator("#lab-people [data-pick=cid]")).to_contain_text("guest")
    expect(page.locator("#lab-confirm")).to_be_hidden()
    assert lab.accounts.person("cid").role == "guest"

    page.locator("#lab-log-fold button").first.click()
    page.locator("#lab-limits button").first.click()
    let_fold_settle(page)
    for name, value in (("running_per_person", ""), ("weekly_gpu_hours", "40.5"), ("device_weights", "cuda:0: 2")):
        page.locator(f"#lab-{name} textarea, #lab-{name} input").fill(value)
    page.locator("#lab-save-limits").click()
    expect(page.locator("#lab-log")).to_contain_text("weekly_gpu_hours: None to 40.5")
    limits = read_settings(lab.home).limits
    assert (limits.running_per_person, limits.weekly_gpu_hours, limits.device_weights) == (None, 40.5, {"cuda:0": 2})
    run = write_run(RunStore(lab.home, "cid"), a_config(), InventedRun(state="queued"))
    snapshot = QueueSnapshot(waiting=(WaitingPlace(owner="cid", run_id=run.id),))
    (lab.home.server / SNAPSHOT_FILE).write_text(snapshot.model_dump_json())
    page.locator("#lab-active").get_by_role("button", name="Stop the run cid").click()
    expect(page.locator("#lab-log")).to_contain_text(f"cid/{run.id}")
    assert run.folder.stop_request.exists()

    page.locator("#lab-news button").first.click()
    let_fold_settle(page)
    page.locator("#lab-maintenance input").check()
    page.locator("#lab-maintenance-text textarea, #lab-maintenance-text input").fill("Back at 14:00.")
    page.locator("#lab-save-maintenance").click()
    expect(page.locator("#header .notice")).to_contain_text("Maintenance: no runs start. Back at 14:00.")


def test_a_member_has_no_lab_tab(lab, page):
    lab.add("dan")
    page.context.add_cookies(
        [
            {
                "name": COOKIE,
                "value": lab.sessions.begin(lab.accounts.person("dan"), "", ""),
                "url": lab.url,
                "secure": True,
            }
        ]
    )
    page.goto(lab.url)
    expect(page.locator("#header .account")).to_contain_text("dan")
    expect(page.get_by_role("tab", name="Runs", exact=True)).to_be_visible()
    expect(page.get_by_role("tab", name="Lab", exact=True)).to_have_count(0)

"""The road into a lab in a real browser, over real TLS: an invitation, a page of one's own, signing out and in again."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, expect

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path, read_settings
from loratory.engine.accounts.people import Person
from loratory.engine.lab.supervision import SNAPSHOT_FILE, QueuedRun, QueueSnapshot
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.ui.front.gate import COOKIE
from loratory.ui.services import Services
from tests.browser.chromium import (
    PATIENCE_MS,
    await_draft,
    barriers,
    choose_model_and_data,
    let_layout_settle,
    open_tab,
)
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.lab import PASSWORD, Lab, running_lab
from tests.waiting import wait_until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    def slowly(own: LoratoryHome, person: Person) -> Services:
        """Services whose runs are at work for twenty minutes: other people still find them so."""
        return replace(fake_services(own.root, seconds_per_step=20.0, home=own, owner=person.name), person=person)

    with pytest.MonkeyPatch.context() as patch:  # as its systemd unit starts it, with the home elsewhere
        patch.chdir("/")
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        with running_lab(tmp_path_factory.mktemp("lab"), slowly) as running:
            running.add("root", "admin")
            yield running


# What Gradio says of its open requests when a page is left; an answer with an error is noted by its status.
_OF_LEAVING = ("AbortError: signal is aborted", "Connection errored out")


@contextmanager
def visitor(browser: Browser) -> Iterator[Page]:
    """Open a new browser context whose console must stay free of errors; it accepts any certificate."""
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    signs_out = False  # what the page asks between that and the next page is refused

    def note(text: str, is_error: bool) -> None:
        if is_error and not signs_out:
            errors.append(text)

    def follow(*, is_signing_out: bool) -> None:
        nonlocal signs_out
        signs_out = is_signing_out

    page.on("request", lambda request: follow(is_signing_out=True) if request.url.endswith("/sign-out") else None)
    page.on("framenavigated", lambda _: follow(is_signing_out=False))
    page.on("pageerror", lambda error: note(str(error), True))
    page.on("console", lambda message: note(message.text, message.type == "error"))
    page.on("response", lambda answer: note(f"{answer.status} {answer.url}", answer.status >= 400))
    yield page
    context.close()
    assert [error for error in errors if not any(text in error for text in _OF_LEAVING)] == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """One visitor."""
    with visitor(browser) as page:
        yield page


def sign_in(lab: Lab, page: Page, name: str) -> None:
    """Give a browser a session of a person."""
    token = lab.sessions.begin(lab.accounts.person(name), "", "")
    page.context.add_cookies([{"name": COOKIE, "value": token, "url": lab.url, "secure": True}])
    page.goto(lab.url)
    expect(page.locator("#header .account")).to_contain_text(name)
    await_draft(page)


def join(lab: Lab, page: Page, link: str, name: str) -> None:
    """Make an account with the link of an invitation."""
    page.goto(link)
    expect(page).to_have_url(f"{lab.url}/join")  # the token does not stay in the address
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill(PASSWORD)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#header .account")).to_contain_text(name)


def test_an_invited_person_joins_trains_leaves_and_comes_back(lab, page):
    page.goto(f"{lab.url}/join")
    assert barriers(page) == []
    join(lab, page, f"{lab.url}/join#{lab.accounts.invite('member', by='root').token}", "ann")
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

    await_draft(page)
    open_tab(page, "Runs")
    expect(page.locator("#runs-table")).to_contain_text(runs[0].name[-4:])


def test_signing_in_works_without_javascript(lab, browser):
    lab.add("bea")
    context = browser.new_context(ignore_https_errors=True, java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
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
    assert barriers(page) == []
    page.get_by_label("Name").fill("root")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    await_draft(page)
    open_tab(page, "Lab")
    expect(page.locator("#lab-people [data-pick=root]")).to_be_visible()
    assert barriers(page) == []
    page.locator("#lab-invite").click()
    link = page.locator("#lab-result pre").inner_text()
    assert lab.accounts.find_invitation(link.partition("#")[2]).role == "member"
    lab.accounts.accept(link.partition("#")[2], "cid", PASSWORD)

    run = write_run(RunStore(lab.home, "cid"), a_config(), InventedRun(state="queued"))
    snapshot = QueueSnapshot(waiting=(QueuedRun(owner="cid", run_id=run.id),))
    (lab.home.server / SNAPSHOT_FILE).write_text(snapshot.model_dump_json())
    actions = page.locator("#lab-active")
    actions.get_by_role("button", name=f"Look into the run cid/{run.id}").click()  # it opens on the Runs tab
    expect(page.locator("#shared-heading")).to_contain_text("Of cid, read only.")
    looks = [entry for entry in AuditLog(audit_log_path(lab.home)).entries() if entry.kind == "looked into"]
    assert {(entry.person, entry.subject) for entry in looks} == {("root", f"cid/{run.id}")}

    with lab.sessions._database.transaction() as connection:  # an hour later
        connection.execute("UPDATE sessions SET confirmed = confirmed - 3600 WHERE person = 'root'")
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
    let_layout_settle(page)
    for name, value in (("running_per_person", ""), ("weekly_gpu_hours", "40.5"), ("device_weights", "cuda:0: 2")):
        page.locator(f"#lab-{name} textarea, #lab-{name} input").fill(value)
    expect(page.get_by_test_id("toast-body")).to_have_count(0)  # an earlier message takes later ones away with it
    page.locator("#lab-save-limits").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Limits saved.")
    expect(page.locator("#lab-log")).to_contain_text("weekly_gpu_hours: None to 40.5")
    limits = read_settings(lab.home).limits
    assert (limits.running_per_person, limits.weekly_gpu_hours, limits.device_weights) == (None, 40.5, {"cuda:0": 2})
    actions.get_by_role("button", name=f"Make the run cid/{run.id} urgent").click()
    page.locator("#lab-urgent-why input, #lab-urgent-why textarea").fill("paper deadline")
    page.locator("#lab-urgent-yes").click()
    expect(actions).to_contain_text("root made it urgent (paper deadline)")
    actions.get_by_role("button", name="Stop the run cid").click()
    wait_until(run.folder.stop_request.exists)
    expect(page.locator("#lab-log")).to_contain_text("run stopped")

    page.locator("#lab-news button").first.click()
    let_layout_settle(page)
    page.locator("#lab-maintenance input").check()
    page.locator("#lab-maintenance-text textarea, #lab-maintenance-text input").fill("Back at 14:00.")
    page.locator("#lab-save-maintenance").click()
    expect(page.locator("#header .notice")).to_contain_text("Maintenance: no runs start. Back at 14:00.")


def test_a_member_uploads_rows_opens_a_conversation_and_downloads_a_run(lab, page, tmp_path):
    lab.add("hal")
    write_run(RunStore(lab.home, "hal"), a_config(), InventedRun())
    rows, saved = tmp_path / "due-dates.jsonl", tmp_path / "saved.json"
    rows.write_text('{"text": "When is it due?"}\n')
    saved.write_text(json.dumps({"turns": [{"question": "And on a Sunday?", "answers": []}]}))
    sign_in(lab, page, "hal")
    expect(page.get_by_role("tab", name="Runs", exact=True)).to_be_visible()
    expect(page.get_by_role("tab", name="Lab", exact=True)).to_have_count(0)

    open_tab(page, "Data")
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files(rows)
    expect(page.locator("#dataset-summary")).to_contain_text("due-dates.jsonl")
    assert (lab.home.for_person("hal").uploads / "due-dates.jsonl").read_bytes() == rows.read_bytes()

    open_tab(page, "Chat")
    let_layout_settle(page)
    with page.expect_file_chooser() as chooser:
        page.locator("#chat-open").click()
    chooser.value.set_files(saved)
    expect(page.locator("#transcript .question")).to_contain_text("And on a Sunday?")

    open_tab(page, "Export")
    expect(page.locator("#export-use")).to_contain_text("loratory export")
    for form, name in (("Script", "train.py"), ("YAML", "config.yaml")):
        page.locator("#export-form").get_by_text(form, exact=True).click()
        expect(page.locator("#download-text")).to_contain_text(name)
        with page.expect_download() as download:
            page.locator("#download-text").click()
        assert download.value.suggested_filename == name
        assert "learning_rate" in download.value.path().read_text()
    page.goto(f"{lab.url}/account")
    assert barriers(page) == []


SECRET = "Only for the eyes of eva"


def runs_of(lab: Lab, name: str) -> list[Run]:
    return RunStore(lab.home, name).list()


def publish_queue(lab: Lab, active: Run, waiting: Run) -> None:
    """Write the queue as a supervisor would, with words that name the owner's run."""
    waiting_run = QueuedRun(owner=waiting.owner, run_id=waiting.id, reason="earlier_run", cause=f"After {SECRET}.")
    snapshot = QueueSnapshot(active=((active.owner, active.id),), waiting=(waiting_run,))
    (lab.home.server / SNAPSHOT_FILE).write_text(snapshot.model_dump_json())


def test_a_person_shares_a_run_and_another_reads_and_copies_it(lab, browser):
    lab.add("eva")
    lab.add("finn")
    with visitor(browser) as eva, visitor(browser) as finn:
        sign_in(lab, eva, "eva")
        choose_model_and_data(eva)
        open_tab(eva, "Train")
        eva.locator("#start").click()
        expect(eva.locator("#run-heading")).to_contain_text("running")
        (trained,) = runs_of(lab, "eva")
        waiting = write_run(RunStore(lab.home, "eva"), a_config(run__name=SECRET), InventedRun(state="queued"))
        publish_queue(lab, trained, waiting)

        # The queue as both see it: of another person's runs, the owner, the device, the end and a reason in general words.
        open_tab(eva, "Runs")
        expect(eva.locator("#queue-turns")).to_contain_text(f"After {SECRET}.")
        sign_in(lab, finn, "finn")
        open_tab(finn, "Runs")
        turns = finn.locator("#queue-turns")
        expect(turns).to_contain_text("Waits for an earlier run of the same person.")
        expect(turns.locator("tbody tr").first).to_contain_text("eva")
        expect(turns.locator("tbody tr").first).to_contain_text("CPU")
        expect(turns.locator("tbody tr").first).to_contain_text("left")
        expect(finn.locator("#shared-runs")).to_contain_text("Nothing shared yet")
        assert SECRET not in finn.content()
        assert trained.id not in turns.inner_html()
        assert not re.search(rf"\b{trained.id[-4:]}\b", turns.inner_text())

        eva.locator(f"#runs-table [data-pick='{trained.id}']").first.click()
        eva.locator("#run-share").click()
        expect(eva.locator("#run-share")).to_have_text("Stop sharing")
        open_tab(finn, "Model")
        open_tab(finn, "Runs")
        finn.locator(f"#shared-runs [data-pick='eva/{trained.id}']").click()
        expect(finn.locator("#shared-heading")).to_contain_text("Of eva, read only.")
        expect(finn.locator("#shared-run button:visible").filter(has_text="Copy settings")).to_be_visible()
        offers = {text.strip() for text in finn.locator("#shared-run button:visible").all_inner_texts()}
        assert offers <= {"Open in Chat", "Copy settings", "PNG", "SVG", "CSV"}, (
            "another person's run is not stopped or deleted"
        )
        finn.locator("#shared-copy").click()
        finn.locator("#tabs button[role=tab].selected:has-text('Method')").wait_for()
        open_tab(finn, "Train")
        expect(finn.locator("#start")).to_be_enabled()
        finn.locator("#start").click()
        expect(finn.locator("#run-heading")).to_contain_text("running")
        (copy,) = runs_of(lab, "finn")
        assert copy.folder.read_config() == trained.folder.read_config()
        assert not trained.folder.stop_request.exists()


def test_an_admin_removes_an_account_after_reading_what_becomes_of_its_runs(lab, page):
    lab.add("gus")
    write_run(RunStore(lab.home, "gus"), a_config(), InventedRun())
    sign_in(lab, page, "root")
    open_tab(page, "Lab")
    page.locator("#lab-people [data-pick=gus]").click()
    expect(page.locator("#lab-person h3")).to_have_text("gus")
    page.locator("#lab-remove").click()
    expect(page.locator("#lab-removal")).to_contain_text("Kept: 1 run, which admins can read.")
    page.locator("#lab-removal-no").click()
    expect(page.locator("#lab-removal")).to_be_hidden()
    with lab.sessions._database.transaction() as connection:  # an hour later
        connection.execute("UPDATE sessions SET confirmed = confirmed - 3600 WHERE person = 'root'")
    page.locator("#lab-remove").click()
    page.locator("#lab-removal-yes").click()
    expect(page.locator("#lab-confirm")).to_be_visible()
    assert "gus" in [person.name for person in lab.accounts.people()]
    page.locator("#lab-password input").fill(PASSWORD)
    page.locator("#lab-confirm-button").click()
    expect(page.locator("#lab-people [data-pick=gus]")).to_have_count(0)
    assert "gus" not in [person.name for person in lab.accounts.people()]
    assert len(runs_of(lab, "gus")) == 1

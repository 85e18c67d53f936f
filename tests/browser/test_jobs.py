"""The choice of Hugging Face Jobs on the page: hardware and price before the start, cost and another machine afterwards."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import JobHardwareInfo
from playwright.sync_api import expect

from loratory.engine.errors import PushError
from loratory.engine.places.huggingface_jobs.account import HardwareList, HubLogin
from loratory.engine.places.huggingface_jobs.layout import JobRecord, JobRequest
from tests.browser.chromium import choose_model_and_data, open_tab, reload
from tests.fake_services import fake_services
from tests.hub.jobs import HARDWARE
from tests.invented_runs import InventedRun, a_config, write_run
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


class Api:
    has_login = True
    requests = 0

    def list_jobs_hardware(self):
        Api.requests += 1
        if not self.has_login:
            raise PushError("Training at Hugging Face needs a token, and there is none.", "Run `hf auth login`.")
        return [JobHardwareInfo(**hardware) for hardware in HARDWARE]


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    services = replace(fake_services(tmp_path_factory.mktemp("home")), hardware=HardwareList(lambda: HubLogin(Api())))
    config = a_config(run__where="jobs", run__name="on the hub", jobs__flavor="l4x1", jobs__limit_hours=1)
    cause, advice = "The job reached its time limit of 1 h at Hugging Face.", "Resume it with a higher time limit."
    run = write_run(
        services.runs, config, InventedRun(state="interrupted", steps=40, resumable_step=40, cause=cause, advice=advice)
    )
    JobRecord(
        attempt=1, namespace="ada", flavor="l4x1", hardware="1x Nvidia L4", price_per_hour_usd=0.8, limit_hours=1, job_id="x",
        url="https://huggingface.co/jobs/ada/x", running_seconds=1800, is_over=True,
    ).save(run.folder)  # fmt: skip
    return services


def test_hardware_price_and_the_most_it_costs_are_shown_before_the_start(page, services):
    choose_model_and_data(page)
    open_tab(page, "Train")
    expect(page.locator("#jobs")).to_be_hidden()
    page.get_by_role("radio", name="Hugging Face Jobs").check()

    offer = page.locator("#jobs-offer")
    expect(offer).to_contain_text("$0.40")
    expect(offer).to_contain_text("Nvidia T4 - small")
    expect(offer).to_contain_text("at most")
    expect(page.locator("#panel")).to_contain_text("NVIDIA T4")
    expect(page.locator("#measure")).to_be_hidden()
    page.locator("#jobs-flavor input").click()
    page.get_by_role("option", name="1x Nvidia L4 ·").click()
    expect(offer).to_contain_text("$0.80")
    page.locator("#jobs-limit textarea, #jobs-limit input").fill("3")
    expect(offer).to_contain_text("$2.40")
    page.locator("#start").click()
    expect(page.locator("#run-heading")).to_be_visible()
    newest = services.runs.list()[0].folder.read_config()
    assert (newest.run.where, newest.jobs.flavor, newest.jobs.limit_hours) == ("jobs", "l4x1", 3)


def test_a_missing_login_is_shown_where_it_matters_and_a_draft_survives_a_reload(page, services, monkeypatch):
    monkeypatch.setattr(Api, "has_login", False)
    monkeypatch.setattr(services.hardware, "_answer", None)
    monkeypatch.setattr("loratory.engine.places.huggingface_jobs.account._TROUBLE_SECONDS", 1e6)
    choose_model_and_data(page)
    open_tab(page, "Train")
    page.get_by_role("radio", name="Hugging Face Jobs").check()
    expect(page.locator("#jobs-offer")).to_contain_text("needs a token")
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#jobs-offer code")).to_have_text("hf auth login")
    expect(page.locator(".trouble:visible")).to_have_count(1)  # elsewhere on the page, words point to it
    before = Api.requests
    length = page.locator("#max-length input[type=number], #max-length textarea")
    expect(length).to_have_value("240")  # what suits the rows would be put over what is typed before
    length.fill("333")
    expect(page.locator("#panel")).to_contain_text("333 tokens")
    monkeypatch.setattr(services.hardware, "_trouble_since", -1e9)  # long afterwards, a change asks again
    length.fill("444")
    # Not when it is asked, but once it is noted that it was refused, so this is not noted after what follows.
    wait_until(lambda: services.hardware._trouble_since > 0)
    assert Api.requests == before + 1
    expect(page.locator("#jobs-offer .trouble")).to_be_visible()

    monkeypatch.setattr(Api, "has_login", True)
    monkeypatch.setattr(services.hardware, "_trouble_since", -1e9)
    reload(page)
    open_tab(page, "Train")
    expect(page.locator("#jobs-offer")).to_contain_text("$0.40")
    expect(page.locator("#start")).to_be_enabled()
    assert Api.requests == before + 2  # a page that was refused does not ask in a loop


def test_a_run_shows_what_its_job_cost_and_is_resumed_on_other_hardware(page, services):
    open_tab(page, "Runs")
    page.locator("#runs-table").get_by_text("on the hub").click()
    page.get_by_role("button", name="Open in Train").click()

    heading = page.locator("#run-heading")
    expect(heading).to_contain_text("job at Hugging Face, $0.40 of at most $0.80")
    expect(heading.get_by_role("link", name="job at Hugging Face")).to_have_attribute(
        "href", "https://huggingface.co/jobs/ada/x"
    )
    expect(page.locator("#run-trouble")).to_contain_text("reached its time limit")
    page.locator("#next-flavor textarea, #next-flavor input").fill("a100-large")
    page.locator("#next-limit textarea, #next-limit input").fill("4")
    page.locator("#resume").click()
    expect(page.locator("#next-flavor")).to_be_hidden()
    run = next(run for run in services.runs.list() if run.folder.job.exists())
    assert JobRequest.read(run.folder) == JobRequest(flavor="a100-large", limit_hours=4)
    assert json.loads((services.home.server / "resume" / f"{run.owner}~{run.id}").read_text()) == 1

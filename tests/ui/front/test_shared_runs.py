"""A run that its owner shares is followed by others while it trains, for as long as it is shared."""

import json

import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.lab.rules import set_shared
from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run
from tests.page_client import PageClient, read_config
from tests.ui.front.lab import running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        for name in ("ann", "bea"):
            running.add(name)
        running.add("root", "admin")
        yield running


@pytest.fixture
def run(lab):
    return write_run(RunStore(lab.home, "ann"), a_config(run__name="of ann"), InventedRun(state="running", steps=5))


def share(lab, run, is_shared=True):
    set_shared(run, lab.accounts.person("ann"), is_shared, AuditLog(audit_log_path(lab.home)))


def log_step(run, step, loss):
    data = StepData(step=step, epoch=1, loss=loss, learning_rate=1e-4, tokens=1, tokens_per_second=1.0)
    EventWriter(run.folder.events, 1).append(data)


def open_run(page, run):
    page.press("shared-runs", "click", event_data={"pick": f"ann/{run.id}"})
    assert "of ann" in page.value("shared-heading")


def news_of(lab, name, question, stamp=""):
    """Return what the page of a person gets for a question of its poll."""
    with lab.signed_in(name) as http:
        config = read_config(http)
        (part,) = (
            component["id"] for component in config["components"] if component["props"].get("elem_id") == "shared-live"
        )
        body = {"data": [question, stamp], "fn_name": "query", "component_id": part, "session_hash": "other"}
        answer = http.post("/gradio_api/component_server", json=body).raise_for_status().json()
    return json.loads(answer) if answer is not None else None


def test_each_new_step_reaches_those_who_look(lab, run):
    share(lab, run)
    with lab.signed_in("bea") as http, PageClient.open(http, read_config(http)) as page:
        open_run(page, run)
        assert not page.poll("shared-live"), "nothing has happened since the look"
        question = page.value("shared-live")
        log_step(run, 6, 0.123456)

        news = news_of(lab, "bea", question)
        assert not news["submit"]
        assert "to 0.12 in 6 steps" in news["values"]["shared-loss"]
        assert "of ann" in news["values"]["shared-heading"]
        assert news_of(lab, "bea", question, news["stamp"]) is None


def test_the_end_of_a_run_brings_all_of_it_and_ends_the_questions(lab, run):
    share(lab, run)
    with lab.signed_in("bea") as http, PageClient.open(http, read_config(http)) as page:
        open_run(page, run)
        state = run.folder.read_state()
        run.folder.write_state(state.model_copy(update={"state": "completed"}))

        assert page.poll("shared-live")
        assert "ompleted" in page.value("shared-heading")
        assert page.value("shared-live") == ""


def test_what_is_no_longer_shared_is_gone_from_the_page(lab, run):
    share(lab, run)
    with lab.signed_in("bea") as http, PageClient.open(http, read_config(http)) as page:
        open_run(page, run)
        question = page.value("shared-live")
        share(lab, run, False)

        assert news_of(lab, "bea", question) == {"stamp": "gone", "values": {}, "submit": True}
        assert page.poll("shared-live")
        assert page.value("shared-live") == ""
        assert run.id not in page.value("shared-runs")


def test_an_admin_looks_once_into_what_is_not_shared(lab, run):
    log = audit_log_path(lab.home)
    with lab.signed_in("root") as http, PageClient.open(http, read_config(http)) as page:
        open_run(page, run)
        assert page.value("shared-live") == ""
    assert log.read_text().count(f'"ann/{run.id}"') == 1


@pytest.mark.parametrize("question", ["ann/20200101-000000-000", "../ann", "x", "ann/ completed-0", " "])
def test_a_question_about_what_is_not_shared_gets_nothing(lab, run, question):
    news = news_of(lab, "bea", f"ann/{run.id}" if question == "x" else question)
    assert news == {"stamp": "gone", "values": {}, "submit": True}

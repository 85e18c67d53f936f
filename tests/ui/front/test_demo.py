"""What people without an account see of a Space: the demo run in every state."""

import asyncio
import re
import threading

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from loratory.engine.inspector.session import InspectorSlots
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.history.events import FailedData
from loratory.engine.runs.store import RunStore
from loratory.ui.front.demo import DEMO, open_demo
from loratory.ui.views.demo import ASK
from tests.invented_runs import InventedRun, a_config, write_run
from tests.space.demo_parts import a_demo, with_run
from tests.ui.front.demo_visits import DUPLICATE, SIGN_IN, app_of, send_question, visit, visit_at_once
from tests.ui.front.space.stand_in import environment_at


@pytest.mark.parametrize(
    ("story", "title"),
    [
        (None, "The demo is being prepared"),
        (InventedRun(state="queued", cause="The CPU is in use for training (secret of bea)."), "The demo run waits"),
        (InventedRun(state="running", steps=40), "Training now"),
        (InventedRun(state="stopped", steps=40), "The demo run is paused"),
    ],
)
def test_a_demo_without_a_result_reports_its_state_and_reloads(tmp_path, story, title):
    demo = a_demo(tmp_path)
    if story is not None:
        with_run(demo, story)

    page = visit(demo).get("/").text

    assert title in page
    assert 'http-equiv="refresh"' in page
    assert "<form" not in page
    assert "secret of bea" not in page


def test_why_there_is_no_run_is_reported(tmp_path):
    demo = a_demo(tmp_path)
    demo.problem = "The model <smollm2> cannot be reached."

    page = visit(demo).get("/").text

    assert "The demo cannot start" in page
    assert "The model &lt;smollm2&gt; cannot be reached." in page


def test_a_run_that_trains_shows_its_progress_and_its_curve(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo, InventedRun(state="running", steps=40))

    page = visit(demo).get("/").text

    assert 'max="120" value="40"' in page
    assert '<svg class="loss"' in page


def test_a_failed_run_reports_why_without_a_path(tmp_path):
    demo = a_demo(tmp_path)
    failure = FailedData(cause="disk_full", what=f"The disk of {tmp_path}/runs is full.", fix=f"Clear {tmp_path}.")
    with_run(demo, InventedRun(state="failed", steps=31, failed=failure))

    page = visit(demo).get("/").text

    assert "The demo run failed" in page
    assert "The disk of the folder of this Space/runs is full." in page
    assert str(tmp_path) not in page
    assert 'http-equiv="refresh"' not in page


def test_a_finished_run_shows_figures_curve_tokens_and_answers(demo_with_run):
    page = visit(demo_with_run).get("/").text
    text = re.sub(r"<[^>]+>", " ", page)

    assert re.search(r"2\.71\s+→\s+to\s+0\.97", text)
    assert re.search(r"1\.32\s+GiB predicted\s+1\.19\s+GiB measured", text)
    assert "the measured peak was 10% below the estimate" in text
    assert page.count('role="img"') == 2, "one curve for wide screens and one for narrow ones"
    assert re.search(
        r"<title id=.loss-760.>Loss by step</title><desc id=.loss-760-words.>Training loss falls from", page
    )
    assert 'class="trained"' in page
    assert 'class="masked special"' in page
    assert page.count("<article") == 3
    assert "Answer in the data" in page
    assert f'action="{ASK}#ask"' in page
    for address in (SIGN_IN, DUPLICATE):
        assert f'href="{address}" target="_blank" rel="noopener"' in page
    assert 'http-equiv="refresh"' not in page


def test_a_space_opens_its_demo_and_closes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.engine.space.demo._POLL_SECONDS", 600)
    home = LoratoryHome(tmp_path)
    home.make_writable()

    environment = environment_at("https://ann-loratory.hf.space", "https://huggingface.co")
    others = set(threading.enumerate())
    with open_demo(home, environment, InspectorSlots()) as pages:
        page = TestClient(Starlette(routes=pages.routes())).get(DEMO).text
        (thread,) = [thread for thread in set(threading.enumerate()) - others if thread.name == "demo"]

    assert "The demo is being prepared" in page
    assert f'href="{SIGN_IN}"' in page
    assert f'href="{environment.duplicate_url}"' in page
    thread.join(300)
    assert not thread.is_alive()


def test_a_person_who_is_not_admitted_gets_the_reason(demo_with_run):
    answer = visit(demo_with_run, why="Your account <bea> is not admitted.").get("/")

    assert answer.status_code == 403
    assert 'role="alert">Your account &lt;bea&gt; is not admitted.' in answer.text


def test_nothing_in_the_page_runs_or_comes_from_elsewhere(demo_with_run):
    client = visit(demo_with_run, why="No.")
    for answer in (client.get("/"), client.get(DEMO), send_question(client), send_question(client, "")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "script" not in policy
        assert "unsafe" not in policy
        assert "<script" not in answer.text
        assert not re.search(r"\son\w+=|\sstyle=|\ssrc=|javascript:", answer.text)
        assert "set-cookie" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"


def test_the_address_of_an_answer_can_be_opened_once_more(demo_with_run):
    client = visit(demo_with_run)

    assert client.get(ASK).content == client.get(DEMO).content
    assert client.post(DEMO, data={"prompt": "x"}).status_code == 405


def test_the_page_is_made_once_for_many_visitors(demo_with_run, monkeypatch):
    views = []
    monkeypatch.setattr("loratory.ui.front.demo.render_demo", lambda view: views.append(view) or "<p>made</p>")

    async def visitors(client):
        return await asyncio.gather(*(client.get("/") for _ in range(100)))

    answers = visit_at_once(app_of(demo_with_run), visitors)

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(views) == 1


def test_no_one_waits_for_the_page_to_be_made_again(demo_with_run, monkeypatch):
    monkeypatch.setattr("loratory.ui.front.demo._REFRESH_SECONDS", 0.0)
    reading, let = threading.Event(), threading.Event()
    read = demo_with_run.sample_of

    def slowly(run):
        reading.set()
        assert let.wait(300)
        return read(run)

    async def visitors(client):
        await client.get("/")
        monkeypatch.setattr(demo_with_run, "sample_of", slowly)
        first = asyncio.create_task(client.get("/"))
        assert await asyncio.to_thread(reading.wait, 300)
        second = await asyncio.wait_for(client.get("/"), 300)  # while the first is still at it
        let.set()
        return [second.status_code, (await first).status_code]

    assert visit_at_once(app_of(demo_with_run), visitors) == [200, 200]


def test_the_page_follows_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.ui.front.demo._REFRESH_SECONDS", 0.0)
    demo = a_demo(tmp_path)
    client = visit(demo)
    assert "being prepared" in client.get("/").text

    with_run(demo)

    assert "A finished run" in client.get("/").text


def test_nothing_of_other_runs_is_shown(demo_with_run):
    other = RunStore(demo_with_run.home, "bea")
    run = write_run(other, a_config(run__name="secret of bea"), InventedRun(seed=9))
    client = visit(demo_with_run)

    for path in (
        f"{DEMO}?run={run.id}",
        f"/?run={run.id}&owner=bea",
        f"{DEMO}/{run.id}",
        f"/demo/../runs/bea/{run.id}",
    ):
        answer = client.get(path)
        assert run.id not in answer.text
        assert "secret of bea" not in answer.text
    answer = client.post(ASK, data={"prompt": "x", "run": run.id, "owner": "bea", "target": str(run.folder.path)})
    assert "secret of bea" not in answer.text
    assert demo_with_run.chat.session.state.target.tuned.folder.parent.name == "demo"

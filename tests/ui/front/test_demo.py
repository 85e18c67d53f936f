"""What people without an account see of a Space: the demo run in every state, and answers to short questions."""

import asyncio
import re
import threading
from html import unescape

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from engine.accounts.lab import PublicAddress
from engine.accounts.throttle import DemoThrottle
from engine.chat.contract import ChatChunk
from engine.errors import ModelError
from engine.paths import LoratoryHome
from engine.runs.history.events import FailedData
from engine.runs.store import RunStore
from tests.fake_chat import FakeChatSession
from tests.invented_runs import InventedRun, a_config, write_run
from tests.space.demo_parts import a_demo, with_run, with_sample
from ui.front.demo import DEMO, DemoPages, open_demo
from ui.views.demo import ASK

SIGN_IN = "https://ann-loratory.hf.space/sign-in"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def app_of(demo, why="", **parts):
    """The demo as a Space serves it, with its page also at the root."""
    pages = DemoPages(demo, "ann/loratory", SIGN_IN, **parts)

    async def front(request):
        return await pages.welcome(request, why)

    return Starlette(routes=[Route("/", front), *pages.routes()])


def visit(demo, why="", **parts):
    return TestClient(app_of(demo, why, **parts), client=("203.0.113.7", 1))


@pytest.fixture
def finished(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo)
    return with_sample(demo)


def ask(client, prompt="What does r do?", **headers):
    return client.post(ASK, data={"prompt": prompt}, headers=headers)


class Untrusted(FakeChatSession):
    """A model that answers with whatever it is given."""

    def __init__(self, text):
        super().__init__(0.0)
        self.text = text

    def stream(self, request):
        self.asked.append(request)
        for branch in request.branches:
            yield ChatChunk(branch=branch, text=self.text, tokens=1, tokens_per_second=1, prompt_tokens=3)
            yield ChatChunk(
                branch=branch,
                text="",
                tokens=1,
                tokens_per_second=1,
                prompt_tokens=3,
                done=True,
                finish_reason="length",
            )


class Slow(FakeChatSession):
    """A model that answers when it is let."""

    def __init__(self):
        super().__init__(0.0)
        self.reached, self.let = threading.Event(), threading.Event()

    def stream(self, request):
        self.reached.set()
        assert self.let.wait(30)
        yield from super().stream(request)


def test_a_space_without_a_run_says_what_comes_and_looks_again(tmp_path):
    page = visit(a_demo(tmp_path)).get("/")

    assert page.status_code == 200
    assert "The demo is being prepared" in page.text
    assert 'http-equiv="refresh"' in page.text
    assert "<form" not in page.text


def test_why_there_is_no_run_is_reported(tmp_path):
    demo = a_demo(tmp_path)
    demo.problem = "The model <smollm2> cannot be reached."

    page = visit(demo).get("/").text

    assert "The demo cannot start" in page
    assert "The model &lt;smollm2&gt; cannot be reached." in page


def test_a_waiting_run_says_so(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo, InventedRun(state="queued", cause="The CPU is in use for training (secret of bea)."))

    page = visit(demo).get("/").text

    assert "The demo run waits" in page
    assert "secret of bea" not in page


def test_a_run_that_trains_shows_its_progress_and_its_curve(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo, InventedRun(state="running", steps=40))

    page = visit(demo).get("/").text

    assert "Training now" in page
    assert 'max="120" value="40"' in page
    assert '<svg class="loss"' in page
    assert 'http-equiv="refresh"' in page
    assert "<form" not in page


def test_a_run_that_gave_way_says_that_it_continues(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo, InventedRun(state="stopped", steps=40))

    assert "The demo run is paused" in visit(demo).get("/").text


def test_a_failed_run_says_why_without_a_path(tmp_path):
    demo = a_demo(tmp_path)
    failed = FailedData(cause="disk_full", what=f"The disk of {tmp_path}/runs is full.", fix=f"Clear {tmp_path}.")
    with_run(demo, InventedRun(state="failed", steps=31, failed=failed))

    page = visit(demo).get("/").text

    assert "The demo run failed" in page
    assert "The disk of the folder of this Space/runs is full." in page
    assert str(tmp_path) not in page
    assert 'http-equiv="refresh"' not in page


def test_a_finished_run_shows_figures_curve_tokens_and_answers(finished):
    page = visit(finished).get("/").text
    words = re.sub(r"<[^>]+>", " ", page)

    assert re.search(r"2\.71\s+→\s+to\s+0\.97", words)
    assert re.search(r"Predicted\s+1\.32 GiB\s+Measured\s+1\.19 GiB", words)
    assert "the measured peak was 10% below the estimate" in words
    assert page.count('role="img"') == 2, "one curve for wide screens and one for narrow ones"
    assert re.search(
        r"<title id=.loss-760.>Loss by step</title><desc id=.loss-760-words.>Training loss falls from", page
    )
    assert "The curve as a table" in page
    assert 'class="trained"' in page
    assert 'class="masked special"' in page
    assert page.count("<article") == 3
    assert "Answer in the data" in page
    assert f'action="{ASK}#ask"' in page
    assert 'http-equiv="refresh"' not in page


def test_the_ways_on_open_in_new_tabs(finished):
    page = visit(finished).get("/").text

    assert f'href="{SIGN_IN}" target="_blank" rel="noopener"' in page
    assert 'href="https://huggingface.co/spaces/ann/loratory?duplicate=true" target="_blank" rel="noopener"' in page


@pytest.mark.parametrize("space", ["", "ann", 'ann/"onload=', "ann/../x", "//evil.example/x"])
def test_a_space_without_a_usable_name_cannot_be_duplicated(tmp_path, space):
    pages = DemoPages(a_demo(tmp_path), space, SIGN_IN)

    page = TestClient(Starlette(routes=pages.routes())).get(DEMO).text

    assert "Sign in with Hugging Face" in page
    assert "duplicate" not in page.lower()


def test_a_space_opens_its_demo_and_closes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.space.demo._LOOK_SECONDS", 600)
    home = LoratoryHome(tmp_path)
    home.make_writable()

    with open_demo(home, "ann/loratory", PublicAddress.parse("https://ann-loratory.hf.space")) as pages:
        page = TestClient(Starlette(routes=pages.routes())).get(DEMO).text
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "demo"]

    assert "The demo is being prepared" in page
    assert f'href="{SIGN_IN}"' in page
    thread.join(20)
    assert not thread.is_alive()


def test_who_is_not_admitted_is_told_why(finished):
    answer = visit(finished, why="Your account <bea> is not admitted.").get("/")

    assert answer.status_code == 403
    assert 'role="alert">Your account &lt;bea&gt; is not admitted.' in answer.text


def test_nothing_in_the_page_runs_or_comes_from_elsewhere(finished):
    client = visit(finished, why="No.")
    for answer in (client.get("/"), client.get(DEMO), ask(client), ask(client, "")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "script" not in policy
        assert "unsafe" not in policy
        assert "<script" not in answer.text
        assert not re.search(r"\son\w+=|\sstyle=|\ssrc=|javascript:", answer.text)
        assert "set-cookie" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"


def test_a_head_request_gets_no_body(finished):
    answer = visit(finished).head(DEMO)

    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


def test_the_paths_are_those_of_the_routes(finished):
    pages = DemoPages(finished, "ann/loratory", SIGN_IN)

    assert {route.path for route in pages.routes()} == pages.paths
    client = visit(finished)
    assert client.get(ASK).content == client.get(DEMO).content, "an answer that is reloaded"
    assert client.post(DEMO, data={"prompt": "x"}).status_code == 405


def test_a_question_is_answered_by_base_and_tuned(finished):
    answer = ask(visit(finished), "What does <b>alpha</b> do?\r\nIn short.")

    assert answer.status_code == 200
    (request,) = finished.chat.session.asked[-1:]
    assert [message.content for message in request.messages] == ["What does <b>alpha</b> do?\nIn short."]
    assert request.branches == ("base", "tuned")
    assert request.sampling.max_new_tokens == 64
    assert "What does &lt;b&gt;alpha&lt;/b&gt; do?" in answer.text
    assert "It is &lt;i&gt;often&lt;/i&gt; used in mathematics." in answer.text
    assert "It scales the adapter&#x27;s update" in answer.text


def test_what_a_stranger_and_a_model_say_is_text(tmp_path):
    hostile = "</textarea></p><script>alert(1)</script><img src=x onerror=alert(1)>"
    demo = a_demo(tmp_path, Untrusted(hostile))
    with_run(demo)
    client = visit(with_sample(demo))

    asked, refused = ask(client, hostile), ask(client, hostile + "x" * 500)

    assert (asked.status_code, refused.status_code) == (200, 400)
    for answer in (asked, refused, client.get("/")):
        assert "<script" not in answer.text
        assert "<img" not in answer.text
    assert asked.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3 + 2 * 3, (
        "the prompt, its answers, the recorded ones"
    )
    assert asked.text.count("(token limit)") == 2 + 2 * 3


def test_a_question_is_asked_as_it_was_typed_but_for_what_nobody_types(finished):
    ask(visit(finished), " می\u200cخواهم\u202e \x00👩\u200d🔬? ")

    assert finished.chat.session.asked[-1].messages[0].content == "می\u200cخواهم 👩\u200d🔬?"


@pytest.mark.parametrize(
    ("prompt", "status", "words"),
    [
        ("", 400, "The question is empty."),
        (" \r\n\t\x00\x07\u200b", 400, "The question is empty."),
        ("a" * 501, 400, "The question has 501 characters. Use at most 500."),
        ("a" * 9000, 413, "The question is too long."),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_in_words(finished, prompt, status, words):
    before = len(finished.chat.session.asked)

    answer = ask(visit(finished), prompt)

    assert answer.status_code == status
    assert words in unescape(answer.text)
    assert len(finished.chat.session.asked) == before


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/json", ""])
def test_only_the_form_of_the_page_is_read(finished, kind):
    answer = visit(finished).post(ASK, content=b"prompt=hello", headers={"Content-Type": kind})

    assert answer.status_code == 415
    assert "Send the question with the form of this page." in answer.text


def test_a_body_that_never_ends_is_not_read_to_its_end(finished):
    read = []

    def parts():
        for number in range(10_000):
            read.append(number)
            yield b"prompt=" + b"a" * 1_000

    answer = visit(finished).post(ASK, content=parts(), headers=FORM)

    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"prompt=%ff%fe%00", b"&".join([b"prompt=x"] * 50), b"\xff\xfe", b"prompt"])
def test_a_malformed_form_is_answered(finished, body):
    assert visit(finished).post(ASK, content=body, headers=FORM).status_code in (200, 400)


def test_one_address_may_ask_some_questions_an_hour(finished):
    client = visit(finished)
    statuses = [ask(client).status_code for _ in range(21)]

    assert statuses == [200] * 20 + [429]
    refused = ask(client)
    assert "There were 20 questions from your network within an hour. Try again in 60 minutes." in refused.text
    assert int(refused.headers["retry-after"]) > 3000
    assert ">What does r do?</textarea>" in refused.text, "the question stays"
    other = TestClient(client.app, client=("203.0.113.8", 1))
    assert ask(other).status_code == 200


def test_all_addresses_together_may_ask_some_questions_an_hour():
    throttle = DemoThrottle()
    for number in range(120):
        throttle.begin(f"203.0.{number}.1")

    with pytest.raises(Exception, match="There were 120 questions to this demo within an hour"):
        throttle.begin("198.51.100.1")


def test_all_addresses_of_an_ipv6_network_count_as_one():
    throttle = DemoThrottle()
    for number in range(20):
        throttle.begin(f"2001:db8:1:2::{number + 1:x}")

    with pytest.raises(Exception, match="from your network"):
        throttle.begin("2001:db8:1:2:ffff::1")


def test_an_error_of_the_model_is_told_without_its_words(tmp_path):
    class Broken(FakeChatSession):
        def stream(self, request):
            raise ModelError(f"{tmp_path}/secret is damaged.", "Look into it.")

    demo = a_demo(tmp_path, Broken(0.0))
    with_run(demo)

    answer = ask(visit(demo))

    assert answer.status_code == 503
    assert "The model of the demo cannot answer now." in answer.text
    assert "secret" not in answer.text


def test_before_the_run_has_completed_nothing_is_asked(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo, InventedRun(state="running", steps=40))

    answer = ask(visit(demo))

    assert answer.status_code == 503
    assert "The model is not ready." in answer.text


def test_questions_wait_in_a_short_line(tmp_path):
    slow = Slow()
    demo = a_demo(tmp_path, slow)
    with_run(demo)
    app = app_of(demo)

    async def visitors():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            asked = [asyncio.create_task(client.post(ASK, data={"prompt": f"question {n}"})) for n in range(8)]
            done, _ = await asyncio.wait(asked, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 3:
                more, _ = await asyncio.wait(set(asked) - done, timeout=20, return_when=asyncio.FIRST_COMPLETED)
                assert more
                done |= more
            page = await client.get("/")
            slow.let.set()
            return [answer.status_code for answer in await asyncio.gather(*asked)], page, [one.result() for one in done]

    statuses, page, refused = asyncio.run(visitors())

    assert sorted(statuses) == [200] * 5 + [503] * 3, "one is answered, four wait"
    assert all("Several visitors are asking at the moment." in answer.text for answer in refused)
    assert page.status_code == 200, "the page does not wait for an answer"


def test_a_question_does_not_wait_for_ever(tmp_path):
    slow = Slow()
    demo = a_demo(tmp_path, slow)
    with_run(demo)
    app = app_of(demo, waits_seconds=0.05)

    async def visitors():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            first = asyncio.create_task(client.post(ASK, data={"prompt": "first"}))
            await asyncio.to_thread(slow.reached.wait, 20)
            second = await client.post(ASK, data={"prompt": "second"})
            slow.let.set()
            return (await first).status_code, second

    first, second = asyncio.run(visitors())

    assert first == 200
    assert second.status_code == 503
    assert "The questions of other visitors took too long." in second.text


def test_the_page_is_made_once_for_many_visitors(finished, monkeypatch):
    made = []
    monkeypatch.setattr("ui.front.demo.render_demo", lambda view: made.append(view) or "<p>made</p>")
    app = app_of(finished)

    async def visitors():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            return await asyncio.gather(*(client.get("/") for _ in range(100)))

    answers = asyncio.run(visitors())

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(made) == 1


def test_nobody_waits_for_the_page_to_be_made_again(finished, monkeypatch):
    monkeypatch.setattr("ui.front.demo._LOOK_SECONDS", 0.0)
    looking, let = threading.Event(), threading.Event()
    read = finished.sample_of

    def slowly(run):
        looking.set()
        assert let.wait(20)
        return read(run)

    app = app_of(finished)

    async def visitors():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            await client.get("/")
            monkeypatch.setattr(finished, "sample_of", slowly)
            first = asyncio.create_task(client.get("/"))
            await asyncio.to_thread(looking.wait, 20)
            second = await asyncio.wait_for(client.get("/"), 10)
            let.set()
            return [second.status_code, (await first).status_code]

    assert asyncio.run(visitors()) == [200, 200]


def test_the_page_follows_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("ui.front.demo._LOOK_SECONDS", 0.0)
    demo = a_demo(tmp_path)
    client = visit(demo)
    assert "being prepared" in client.get("/").text

    with_run(demo)

    assert "A finished run" in client.get("/").text


def test_nothing_of_other_runs_is_shown(finished):
    other = RunStore(finished.home, "bea")
    run = write_run(other, a_config(run__name="secret of bea"), InventedRun(seed=9))
    client = visit(finished)

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
    assert finished.chat.session.state.target.tuned.folder.parent.name == "demo"


def test_questions_are_neither_logged_nor_saved(finished, caplog):
    caplog.set_level("DEBUG")
    canary = "canary of a stranger 4711"

    assert canary in ask(visit(finished), canary).text

    assert canary not in caplog.text
    files = [path for path in finished.home.root.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if canary.encode() in path.read_bytes()]

"""Questions of people without an account to the demo of a Space: who may ask, how often, and what is answered."""

import asyncio
import itertools
import re
from html import unescape

import pytest
from starlette.testclient import TestClient

from loratory.engine.accounts.throttle import DemoThrottle
from loratory.engine.chat.contract import ChatChunk
from loratory.engine.errors import ModelError
from loratory.ui.views.demo import ASK
from tests.fake_chat import FakeChatSession
from tests.invented_runs import InventedRun
from tests.space.demo_parts import a_demo, with_run, with_sample
from tests.ui.front.demo_visits import app_of, send_question, visit, visit_at_once
from tests.waiting import PATIENCE_SECONDS, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Untrusted(FakeChatSession):
    """A model that answers with whatever it is given."""

    def __init__(self, text):
        super().__init__(0.0)
        self.text = text

    def stream(self, request):
        self.requests.append(request)
        for branch in request.branches:
            chunk = ChatChunk(branch=branch, text=self.text, tokens=1, tokens_per_second=1, prompt_tokens=3)
            yield chunk
            yield chunk.model_copy(update={"text": "", "done": True, "finish_reason": "length"})


@pytest.fixture
def slow_demo(tmp_path):
    """Give a demo with a run a model that does not answer yet."""
    session = FakeChatSession(0.0)
    session.may_answer.clear()
    demo = a_demo(tmp_path, session)
    with_run(demo)
    return demo


def test_a_question_is_answered_by_base_and_tuned(demo_with_run):
    answer = send_question(visit(demo_with_run), "What does <b>alpha</b> do?\r\nIn short.")

    assert answer.status_code == 200
    (request,) = demo_with_run.chat.session.requests[-1:]
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

    reply, refusal = send_question(client, hostile), send_question(client, hostile + "x" * 500)

    assert (reply.status_code, refusal.status_code) == (200, 400)
    for answer in (reply, refusal, client.get("/")):
        assert "<script" not in answer.text
        assert "<img" not in answer.text
    assert reply.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3 + 2 * 3, (
        "the prompt, its answers, the recorded ones"
    )
    assert reply.text.count("(token limit)") == 2 + 2 * 3


def test_a_question_is_asked_as_it_was_typed_but_for_what_no_one_types(demo_with_run):
    send_question(visit(demo_with_run), " می\u200cخواهم\u202e \x00👩\u200d🔬? ")

    assert demo_with_run.chat.session.requests[-1].messages[0].content == "می\u200cخواهم 👩\u200d🔬?"


@pytest.mark.parametrize(
    ("prompt", "status", "message"),
    [
        ("", 400, "The question is empty."),
        (" \r\n\t\x00\x07\u200b", 400, "The question is empty."),
        ("a" * 501, 400, "The question has 501 characters. Use at most 500."),
        ("a" * 9000, 413, "The form is too large."),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_a_message(demo_with_run, prompt, status, message):
    before = len(demo_with_run.chat.session.requests)

    answer = send_question(visit(demo_with_run), prompt)

    assert answer.status_code == status
    assert message in unescape(answer.text)
    assert len(demo_with_run.chat.session.requests) == before


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/json", ""])
def test_only_the_form_of_the_page_is_read(demo_with_run, kind):
    answer = visit(demo_with_run).post(ASK, content=b"prompt=hello", headers={"Content-Type": kind})

    assert answer.status_code == 415
    assert "Send the question with the form of this page." in answer.text


def test_a_body_that_never_ends_is_not_read_to_its_end(demo_with_run):
    read = []

    def parts():
        for number in range(10_000):
            read.append(number)
            yield b"prompt=" + b"a" * 1_000

    answer = visit(demo_with_run).post(ASK, content=parts(), headers=FORM)

    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"prompt=%ff%fe%00", b"&".join([b"prompt=x"] * 50), b"\xff\xfe", b"prompt"])
def test_a_malformed_form_is_answered(demo_with_run, body):
    assert visit(demo_with_run).post(ASK, content=body, headers=FORM).status_code in (200, 400)


def test_one_address_may_ask_some_questions_an_hour(demo_with_run):
    client = visit(demo_with_run)
    statuses = [send_question(client).status_code for _ in range(21)]

    assert statuses == [200] * 20 + [429]
    refusal = send_question(client)
    assert re.search(
        r"There were 20 questions from your network within an hour. Try again in (1 h 00|5\d) min\.", refusal.text
    )
    assert int(refusal.headers["retry-after"]) > 3000
    assert ">What does r do?</textarea>" in refusal.text, "the question stays"
    other = TestClient(client.app, client=("203.0.113.8", 1))
    assert send_question(other).status_code == 200


@pytest.mark.parametrize(
    ("address", "most", "message"),
    [("203.0.{}.1", 120, "There were 120 questions to this demo"), ("2001:db8:1:2::{}", 20, "from your network")],
    ids=["all together", "an IPv6 network"],
)
def test_questions_of_an_hour_have_a_limit(address, most, message):
    throttle = DemoThrottle()
    for number in range(1, most + 1):
        throttle.begin(address.format(number))

    with pytest.raises(Exception, match=message):
        throttle.begin(address.format(200))


def test_an_error_of_the_model_is_reported_without_its_words(tmp_path):
    class Broken(FakeChatSession):
        def stream(self, request):
            raise ModelError(f"{tmp_path}/secret is damaged.", "Look into it.")

    demo = a_demo(tmp_path, Broken(0.0))
    with_run(demo)

    answer = send_question(visit(demo))

    assert answer.status_code == 503
    assert "The model of the demo cannot answer now." in answer.text
    assert "secret" not in answer.text


def test_before_the_run_has_completed_nothing_is_asked(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo, InventedRun(state="running", steps=40))

    answer = send_question(visit(demo))

    assert answer.status_code == 503
    assert "The model is not ready." in answer.text


def test_questions_wait_in_a_short_line(slow_demo):
    async def visitors(client):
        requests = [asyncio.create_task(client.post(ASK, data={"prompt": f"question {n}"})) for n in range(8)]
        refusals = [await task for task in itertools.islice(asyncio.as_completed(requests, timeout=300), 3)]
        page = await client.get("/")
        slow_demo.chat.session.may_answer.set()
        return [answer.status_code for answer in await asyncio.gather(*requests)], page, refusals

    statuses, page, refusals = visit_at_once(app_of(slow_demo, waits_seconds=PATIENCE_SECONDS), visitors)

    assert sorted(statuses) == [200] * 5 + [503] * 3, "one is answered, four wait"
    assert all("Several visitors are asking at the moment." in answer.text for answer in refusals)
    assert page.status_code == 200, "the page does not wait for an answer"


def test_a_question_does_not_wait_for_ever(slow_demo):
    session = slow_demo.chat.session

    async def visitors(client):
        first = asyncio.create_task(client.post(ASK, data={"prompt": "first"}))
        await asyncio.to_thread(wait_until, lambda: session.requests)
        second = await client.post(ASK, data={"prompt": "second"})
        session.may_answer.set()
        return (await first).status_code, second

    first, second = visit_at_once(app_of(slow_demo, waits_seconds=0.05), visitors)

    assert first == 200
    assert second.status_code == 503
    assert "The questions of other visitors took too long." in second.text


def test_questions_are_neither_logged_nor_saved(demo_with_run, caplog):
    caplog.set_level("DEBUG")
    canary = "canary of a stranger 4711"

    assert canary in send_question(visit(demo_with_run), canary).text

    assert canary not in caplog.text
    files = [path for path in demo_with_run.home.root.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if canary.encode() in path.read_bytes()]

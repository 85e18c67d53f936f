"""From documents on the Data tab: what the script asks, what the page answers, and where the key is not."""

import errno
import json
import threading
import time
from dataclasses import replace

import pytest

from loratory.engine import endpoint
from loratory.engine.data.workshop.generation import Job
from loratory.engine.data.workshop.sets import find_set, set_names
from loratory.engine.errors import DatasetError, StorageError
from loratory.ui.backend.background import BackgroundWork
from loratory.ui.tabs import data_sets
from loratory.ui.tabs.data import DataTab
from tests.data.workshop.made_documents import write_pdf
from tests.fake_services import fake_services
from tests.local_endpoint import GOOD, completion, send, serving
from tests.waiting import wait_until

SECRET = "sk-this/is+the=secret-of-a-test"
FORM = {"dataset": {}, "model": {}, "training": {}, "openable": ""}
PARTS = "".join(f"# Part {n}\n\n{f'Part {n} has many screws. ' * 60}\n\n" for n in range(1, 4))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(endpoint, "_WAITS_SECONDS", (0.0, None))


@pytest.fixture
def answers():
    return []


@pytest.fixture
def query(laid_out, answers):
    tab = laid_out(DataTab)

    def put_question(verb, **values):
        question = {"do": "documents", "verb": verb, "form": FORM, "key": SECRET, **values}
        answers.append(tab.sets.answer(json.dumps(question)))
        return answers[-1]

    return put_question


@pytest.fixture
def manual(services):
    return put(services, "manual.md", PARTS.encode())


def put(services, name, content=b""):
    path = services.home.transfers / "abc" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def form_of(server, *paths, **more):
    usual = {
        "recipe": "question_answer",
        "endpoint": server and server.url,
        "model": "m",
        "answer_tokens": "1024",
        "timeout": "60",
    }
    return {**usual, "documents": [str(path) for path in paths], **more}  # fmt: skip


def end(query):
    wait_until(lambda: not query("progress")["active"])
    return query("progress")["html"]


def result_of(query, server, *paths, **more):
    query("generate", **form_of(server, *paths, **more))
    return end(query)


@pytest.fixture
def ready(query, manual, services):
    with serving() as server:
        assert "candidates of" in result_of(query, server, manual)
    (file,) = Job.files(services.home)
    return file.parent.name


def test_an_estimate_has_passages_tokens_and_cost_and_asks_nothing(query, manual, services):
    with serving() as server:
        query("estimate", **form_of(server, manual, prompt_price="1", answer_price="2"))
        html = end(query)
    assert server.requests == []
    assert Job.files(services.home) == []
    assert "3 passages: at most " in html
    assert "3,072 answer tokens, which cost 0.0" in html
    assert query("list")["jobs"] == []


def test_rows_are_generated_reviewed_and_made_a_set_without_the_key_anywhere(query, manual, services, answers, caplog):
    with serving() as server:
        assert "3 candidates of 3 passages to review." in result_of(query, server, manual)
    assert set(server.keys) == {f"Bearer {SECRET}"}
    listing = query("list")
    (facts,) = listing["jobs"]
    job = facts["name"]
    assert job.startswith("question_answer-")
    assert (facts["files"], facts["candidates"], facts["passages"]) == ("manual.md", [1, 2, 3], 3)
    assert (facts["left"], facts["unusable"]) == ([1, 2, 3], 0)
    assert listing["recipes"]["summary"]["title"] == "Summary"

    first = query("review", job=job)
    assert first["candidate"] == 1
    assert first["text"].startswith("# Part 1")
    assert first["unsupported"] == ["7"]
    edit = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Edited."}]}
    second = query("review", job=job, candidate=1, verdict="edit", row=edit, show=2)
    assert (second["candidate"], second["accepted"], second["left"]) == (2, 1, [2, 3])
    query("review", job=job, candidate=2, verdict="reject", row=None, show=3)
    query("review", job=job, candidate=3, verdict="accept", row=None, show=3)
    query("review", job=job, candidate=1, verdict="accept", reviewer="bob", row=edit, show=2)
    assert query("review", job=job, candidate=2, verdict="accept", reviewer="bob", show=3)["agreements"][0]["rows"] == 2

    assert query("make", job=job, name="manual") == query("progress")
    rows = [json.loads(line) for line in find_set(services.home, "manual").copy().read_bytes().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == ["Edited.", GOOD["answer"]]
    assert SECRET not in json.dumps(answers) + caplog.text
    assert not any(SECRET.encode() in file.read_bytes() for file in services.home.root.rglob("*") if file.is_file())


def test_a_lab_names_the_reviewer_and_a_guest_has_none_of_it(query, ready, services, tmp_path, monkeypatch):
    job = Job.find(services.home, ready)
    query("review", job=ready, candidate=1, verdict="accept", reviewer="Ann")
    assert {who for _, who in job.verdicts()} == {"Ann"}
    own = replace(services.home, owner="carl", role="member")
    monkeypatch.setattr(Job, "find", lambda home, name: job)
    question = {"verb": "review", "job": ready, "candidate": 1, "verdict": "reject", "reviewer": "Ann"}
    data_sets.answer_on_documents(replace(services, home=own), question)
    assert {who for _, who in job.verdicts()} == {"Ann", "carl"}

    guest = fake_services(tmp_path / "guest", home=replace(services.home, owner="guest", role="guest"))
    with pytest.raises(DatasetError, match="outside the folders"):
        data_sets.answer_on_documents(guest, {"verb": "list"})


def test_a_stop_and_a_kill_are_continued_with_what_is_left(query, manual, services):
    is_asked, may_answer = threading.Event(), threading.Event()

    def hold(handler):
        is_asked.set()
        may_answer.wait(60)
        send(handler, 200, json.dumps(completion(GOOD)).encode())

    with serving(hold, (200, completion("no")), (200, completion(GOOD))) as server:
        query("generate", **form_of(server, manual))
        assert is_asked.wait(60)
        assert "is under way" in query("estimate", **form_of(server, manual))["error"]
        assert "Stopping" in query("stop")["html"]
        may_answer.set()
        assert "Stopped. Continue asks for the passages that are left." in end(query)
        assert len(server.requests) == 1

        (facts,) = query("list")["jobs"]
        job = facts["name"]
        assert (facts["candidates"], facts["passages"], facts["left"]) == ([1], 3, [1])
        new_services = replace(services, documents=BackgroundWork())
        question = {"verb": "continue", "key": SECRET, **form_of(None, job=job)}
        assert data_sets.answer_on_documents(new_services, question)["active"]
        wait_until(lambda: not data_sets.answer_on_documents(new_services, {"verb": "progress"})["active"])
        html = data_sets.answer_on_documents(new_services, {"verb": "progress"})["html"]
        assert "2 candidates of 3 passages to review." in html
        assert len(server.requests) == 3
    assert query("list")["jobs"][0]["unusable"] == 1


def test_a_job_is_deleted_unless_it_runs(query, ready, manual, services):
    is_asked, may_answer = threading.Event(), threading.Event()

    def hold(handler):
        is_asked.set()
        may_answer.wait(60)
        send(handler, 200, json.dumps(completion(GOOD)).encode())

    with serving(hold, (200, completion(GOOD))) as server:
        query("generate", **form_of(server, manual, detail="Be brief."))
        assert is_asked.wait(60)
        (name,) = {facts["name"] for facts in query("list")["jobs"]} - {ready}
        assert "is running.</b>Stop it, or wait for its end." in query("delete", job=name)["error"]
        query("delete", job=ready)
        assert [facts["name"] for facts in query("list")["jobs"]] == [name]
        may_answer.set()
        end(query)
    query("delete", job=name)
    assert query("list")["jobs"] == []
    assert list(services.home.datasets.rglob("*.jsonl")) == []
    assert "does not exist" in query("delete", job="../../x")["error"]


def test_progress_says_how_many_answers_cannot_be_used_and_why(query, manual):
    may_answer = threading.Event()

    def hold(handler):
        may_answer.wait(60)
        send(handler, 200, json.dumps(completion(GOOD)).encode())

    with serving((200, completion('{"question": "Q', "length")), hold) as server:
        query("generate", **form_of(server, manual))
        wait_until(
            lambda: "1 unusable, the last: it is cut at the limit of answer tokens." in query("progress")["html"]
        )
        may_answer.set()
        end(query)


def test_the_limit_of_tokens_ends_the_job(query, manual):
    with serving() as server:
        assert "tokens are used" in result_of(query, server, manual, limit_tokens="1100")
    assert server.requests == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"<!doctype html><title>Welcome</title>"), "answered 200: a web page.</b>Check the address"),
        ((404, {"error": "no such model"}), "no such model"),
        ((401, {"error": f"bad key {SECRET}"}), "(key)"),
        (lambda handler: handler.connection.close(), "did not answer"),
        (lambda handler: time.sleep(2), "did not answer within 1 s.</b>Raise the timeout."),
    ],
)
def test_a_bad_endpoint_is_a_box_with_a_fact_and_a_fix(query, manual, reply, message):
    with serving(reply) as server:
        html = result_of(query, server, manual, timeout="1")
    assert 'class="trouble" role="alert"' in html
    assert message in html
    assert SECRET not in html


def test_documents_that_cannot_be_read_are_a_box(query, services):
    scan = write_pdf(put(services, "scan.pdf"), [""])
    assert "scan.pdf has no text.</b>If it has scans, recognize" in result_of(query, None, scan, endpoint="http://x")
    assert "is not text in UTF-8" in result_of(
        query, None, put(services, "bytes.txt", b"\xff\x00"), endpoint="http://x"
    )
    assert "No document is named" in result_of(query, None, endpoint="http://x")


def test_what_a_client_forges_is_refused(query, services, manual, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("The secret of another person.")
    assert "was not uploaded here" in result_of(query, None, secret, endpoint="http://x")
    assert "does not exist" in query("review", job="../../x")["error"]
    assert "error" in query("make", job="x", name=["a"])
    assert "cannot be used" in result_of(query, None, manual, endpoint="file:///etc/passwd")
    assert "Something unexpected" in result_of(query, None, manual, answer_tokens="many")
    assert set_names(services.home) == []


def test_a_lab_reaches_no_private_address_unless_its_admin_allows_it(query, manual, monkeypatch):
    monkeypatch.setattr(data_sets, "allows_private_hosts", lambda home: False)
    with serving() as server:
        assert "is an address of a private network" in result_of(query, server, manual)
    assert server.requests == []


def test_a_full_disk_refuses_more_rows_and_sets(query, ready, manual, monkeypatch):
    def refuse(home, owner, more_bytes=0):
        raise StorageError("The disk is full.", "Delete something.")

    def is_full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving() as server, monkeypatch.context() as full:
        full.setattr("loratory.engine.files.os.fsync", is_full)
        assert "cannot be written (No space left on device).</b>Free some space" in result_of(query, server, manual)
        assert server.requests == []
    monkeypatch.setattr(data_sets, "require_disk_space", refuse)
    assert "The disk is full" in query("generate", **form_of(None, manual))["error"]
    query("review", job=ready, candidate=1, verdict="accept")
    assert "The disk is full" in query("make", job=ready, name="manual")["error"]

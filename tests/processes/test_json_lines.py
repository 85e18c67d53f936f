import threading
import time
from pathlib import Path

import pytest

from loratory.engine.errors import ConfigError, DatasetError, WorkerError
from loratory.engine.processes.json_lines import JsonLinesProcess, _Running
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.messages import ProcessEndedError
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def process(tmp_path):
    worker = JsonLinesProcess(
        "tests.processes.answering_worker", log_file=tmp_path / "worker.log", environment={"PYTHONPATH": str(ROOT)}
    )
    yield worker
    worker.close()


def test_a_question_is_answered_whatever_libraries_print(process):
    assert process.call("echo", {"text": "ä\n\u2028"})["echo"] == {"text": "ä\n\u2028"}


def test_it_starts_with_the_first_question_or_when_asked_to(process):
    assert process.pid is None
    process.start()
    pid = process.pid
    assert pid is not None
    assert process.call("echo", {})["pid"] == pid


def test_errors_arrive_as_they_were_raised_and_the_worker_lives_on(process):
    with pytest.raises(DatasetError) as dataset:
        process.call("fail", {"how": "dataset"})
    assert (dataset.value.what, dataset.value.fix) == ("The file is empty.", "Choose another.")
    with pytest.raises(ConfigError) as config:
        process.call("fail", {"how": "config"})
    assert [problem.field for problem in config.value.problems] == ["a.b", "c.d"]
    assert process.call("echo", {})["echo"] == {}


def test_the_unexpected_tells_a_person_no_details_and_its_log_all(process, tmp_path):
    with pytest.raises(WorkerError, match=r"unexpected happened \(KeyError\)") as error:
        process.call("fail", {"how": "?"})
    assert "secret" not in str(error.value)
    assert "secret" in (tmp_path / "worker.log").read_text()


def test_a_death_is_said_to_everyone_who_waits_and_the_next_question_restarts_it(process):
    messages: list[str] = []

    def request() -> None:
        try:
            process.call("wait", {})
        except WorkerError as error:
            messages.append(str(error))

    first = process.call("echo", {})["pid"]
    waiting = threading.Thread(target=request)
    stream = process.stream("wait", {})
    next(stream)
    waiting.start()
    while len(process._answers) < 2:  # asked after the death, it would be asked of a new process, and wait for ever
        time.sleep(0.01)
    identity = ProcessIdentity.from_pid(first)
    assert identity is not None
    identity.kill()
    with pytest.raises(WorkerError, match="signal 9"):
        list(stream)
    waiting.join()

    assert len(messages) == 1
    assert process.call("echo", {})["pid"] != first


def test_a_process_that_ends_as_it_is_asked_is_not_ended_by_the_question(process, monkeypatch):
    identity = ProcessIdentity.from_pid(process.call("echo", {})["pid"])
    assert identity is not None
    identity.kill()
    wait_until(lambda: process.pid is None)
    with monkeypatch.context() as patch:
        patch.setattr(_Running, "is_alive", True)  # as it was when this was looked at
        with pytest.raises(ProcessEndedError, match="signal 9") as end:
            process.call("echo", {})

    assert not end.value.at_fault
    assert process.requests == 0
    assert process.call("echo", {})["echo"] == {}


def test_the_end_of_an_old_process_does_not_disturb_questions_to_its_successor(process):
    """Its pipe ends only when a child that it left behind ends, long after the new process got its first question."""
    identity = ProcessIdentity.from_pid(process.call("leave_child", {})["pid"])
    assert identity is not None
    identity.kill()
    wait_until(lambda: not identity.is_alive())

    stream = process.stream("wait", {})
    for _ in range(60):  # at 50 a second: until after the child has ended
        assert "progress" in next(stream)
    stream.close()


def test_closing_a_stream_early_cancels_its_request(process):
    stream = process.stream("wait", {})
    next(stream)
    stream.close()

    assert process.call("echo", {})["echo"] == {}, "the worker is free again"


def test_the_worker_ends_when_it_is_closed_and_when_its_asker_is_gone(process):
    process.start()
    identity = ProcessIdentity.from_pid(process.pid or 0)
    assert identity is not None
    process.close()
    assert not identity.is_alive()


ENOUGH_TO_STILL_RUN = 10_000_000


def test_no_worker_takes_compiled_code_from_the_hub(monkeypatch, process):
    monkeypatch.setenv("USE_HUB_KERNELS", "YES")

    assert process.call("environment", {})["environment"]["USE_HUB_KERNELS"] == "0"


@pytest.fixture
def interleaving(tmp_path):
    worker = JsonLinesProcess(
        "tests.processes.interleaving_worker",
        log_file=tmp_path / "worker.log",
        environment={"PYTHONPATH": str(ROOT)},
    )
    yield worker
    worker.close()


def test_two_requests_that_yield_advance_side_by_side(interleaving):
    observations: list[str] = []
    first = interleaving.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN})
    next(first)
    second = interleaving.stream("count", {"name": "b", "to": 50})

    finished = threading.Event()

    def follow_second():
        observations.extend(answer["progress"]["name"] for answer in second if "progress" in answer)
        finished.set()

    threading.Thread(target=follow_second, daemon=True).start()
    numbers = []
    for answer in first:
        numbers.append(answer["progress"]["number"])
        if finished.is_set():
            break
    first.close()

    assert observations == ["b"] * 50
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_short_question_is_answered_while_a_long_one_runs(interleaving):
    long = interleaving.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN})
    next(long)

    assert interleaving.call("ping", {}) == {"pong": True}
    assert "progress" in next(long)
    long.close()


def test_a_cancelled_request_still_answers_with_its_result(interleaving):
    request_id = interleaving.reserve_id()
    stream = interleaving.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN}, request_id=request_id)
    next(stream)

    interleaving.cancel(request_id)
    answers = list(stream)

    assert answers[-1]["result"]["cancelled"] is True
    assert answers[-1]["result"]["reached"] < ENOUGH_TO_STILL_RUN


def test_a_cancel_that_comes_before_the_request_counts(interleaving):
    interleaving.start()
    request_id = interleaving.reserve_id()
    interleaving.cancel(request_id)

    (answer,) = interleaving.stream("count", {"name": "a", "to": 5}, request_id=request_id)

    assert answer["result"] == {"reached": 0, "cancelled": True}


def test_an_error_between_two_turns_reaches_its_asker_and_no_one_else(interleaving):
    other = interleaving.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN})
    next(other)

    with pytest.raises(DatasetError, match=r"The third row is empty\. Delete it\."):
        interleaving.call("fail_later", {})
    assert "progress" in next(other)
    other.close()

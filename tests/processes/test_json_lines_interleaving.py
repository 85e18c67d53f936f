"""Handlers that yield share the one thread of their process."""

import threading
from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.processes.json_lines import JsonLinesProcess

ROOT = Path(__file__).resolve().parents[2]
ENOUGH_TO_STILL_RUN = 10_000_000


@pytest.fixture
def process(tmp_path):
    worker = JsonLinesProcess(
        "tests.processes.interleaving_worker",
        log_file=tmp_path / "worker.log",
        environment={"PYTHONPATH": str(ROOT)},
    )
    yield worker
    worker.close()


def test_two_requests_that_yield_advance_side_by_side(process):
    observations: list[str] = []
    first = process.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN})
    next(first)
    second = process.stream("count", {"name": "b", "to": 50})

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


def test_a_short_question_is_answered_while_a_long_one_runs(process):
    long = process.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN})
    next(long)

    assert process.call("ping", {}) == {"pong": True}
    assert "progress" in next(long)
    long.close()


def test_a_cancelled_request_still_answers_with_its_result(process):
    request_id = process.reserve_id()
    stream = process.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN}, request_id=request_id)
    next(stream)

    process.cancel(request_id)
    answers = list(stream)

    assert answers[-1]["result"]["cancelled"] is True
    assert answers[-1]["result"]["reached"] < ENOUGH_TO_STILL_RUN


def test_a_cancel_that_comes_before_the_request_counts(process):
    process.start()
    request_id = process.reserve_id()
    process.cancel(request_id)

    (answer,) = process.stream("count", {"name": "a", "to": 5}, request_id=request_id)

    assert answer["result"] == {"reached": 0, "cancelled": True}


def test_an_error_between_two_turns_reaches_its_asker_and_no_one_else(process):
    other = process.stream("count", {"name": "a", "to": ENOUGH_TO_STILL_RUN})
    next(other)

    with pytest.raises(DatasetError, match=r"The third row is empty\. Delete it\."):
        process.call("fail_later", {})
    assert "progress" in next(other)
    other.close()

"""Slots for the helper processes of several people: there are never more, and one person cannot use all."""

import itertools
import threading
import time
from pathlib import Path

import psutil
import pytest

from loratory.engine.errors import WorkerError
from loratory.engine.processes.json_lines import JsonLinesProcess, result_of
from loratory.engine.processes.pool import ProcessPool, ProcessSlots
from tests.waiting import PATIENCE_SECONDS, count_living, wait_until

ROOT = Path(__file__).resolve().parents[2]
WORKER = "tests.processes.confined_worker"


def slots_for(most: int) -> ProcessSlots:
    """Return slots whose clock runs so fast that a process is free as soon as it has answered."""
    return ProcessSlots(most, clock=itertools.count(step=2.0).__next__)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Who waits looks again soon."""
    monkeypatch.setattr("loratory.engine.processes.pool._POLL_SECONDS", 0.02)


@pytest.fixture
def pool_of(tmp_path):
    """Return what makes the pool of a person."""
    pools = []

    def make(person: str, slots: ProcessSlots, size: int = 2, idle_seconds: float = 60.0) -> ProcessPool:
        processes = tuple(
            JsonLinesProcess(WORKER, log_file=tmp_path / "worker.log", environment={"PYTHONPATH": str(ROOT)})
            for _ in range(size)
        )
        pool = ProcessPool(
            processes, lambda _: WorkerError("it overran", ""), permanent=0, idle_seconds=idle_seconds, slots=slots, person=person
        )  # fmt: skip
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close(timeout_seconds=0.5)


@pytest.fixture
def ann_and_bea(pool_of) -> tuple[ProcessPool, ProcessPool]:
    """Return the pools of two people who share one slot."""
    slots = slots_for(1)
    return pool_of("ann", slots), pool_of("bea", slots)


def living(*pools: ProcessPool) -> int:
    return count_living(pid for pool in pools for pid in pool.pids)


def test_twenty_people_have_no_more_processes_than_slots(pool_of):
    slots = slots_for(3)
    pools = [pool_of(f"person-{number}", slots) for number in range(20)]
    most, answers = [], []

    def request(pool):
        answers.append(result_of(pool.stream("echo", {}, waits_seconds=PATIENCE_SECONDS))["pid"])

    threads = [threading.Thread(target=request, args=(pool,)) for pool in pools]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most.append(living(*pools))
        time.sleep(0.01)

    assert len(answers) == 20
    assert max(most) <= 3
    assert living(*pools) <= 3


def test_an_idle_process_makes_room_for_another_person(ann_and_bea):
    ann, bea = ann_and_bea
    first = ann.call("echo", {})["pid"]

    assert bea.call("echo", {})["pid"] != first

    assert not ann.pids
    assert not psutil.pid_exists(first)


def test_a_person_whose_slot_is_in_use_sees_that_and_is_next(ann_and_bea):
    ann, bea = ann_and_bea
    counting = ann.stream("count", {"to": 1_000_000})
    next(counting)

    asking = bea.stream("echo", {}, waits_seconds=PATIENCE_SECONDS)
    assert "busy with requests of other people" in next(asking)["waiting"]
    counting.close()

    assert any("result" in answer for answer in asking)


def test_a_question_gives_up_its_wait_after_a_while(ann_and_bea):
    ann, bea = ann_and_bea
    counting = ann.stream("count", {"to": 1_000_000})
    next(counting)

    with pytest.raises(WorkerError, match="busy with requests of other people"):
        list(bea.stream("echo", {}, waits_seconds=0.0))

    counting.close()
    assert bea.call("echo", {})["pid"]


def test_one_person_cannot_use_all_slots(pool_of):
    slots = slots_for(4)
    greedy = [pool_of("ann", slots, size=1) for _ in range(6)]
    counts = [pool.stream("count", {"to": 1_000_000}) for pool in greedy]
    started = [answers for answers in counts if "progress" in next(answers)]

    assert len(started) == 2
    assert pool_of("bea", slots).call("echo", {})["pid"]
    for answers in counts:
        answers.close()


def test_next_is_who_has_fewest_at_work():
    slots = slots_for(2)
    processes = [JsonLinesProcess(WORKER, log_file=Path("unused")) for _ in range(4)]
    list(slots.acquire(processes[0], "ann"))
    list(slots.acquire(processes[1], "cal"))
    order = []

    def wait(process, person):
        for _ in slots.acquire(process, person):
            pass
        order.append(person)

    waiting = []
    for process, person in ((processes[2], "ann"), (processes[3], "bea")):
        thread = threading.Thread(target=wait, args=(process, person))
        thread.start()
        waiting.append(thread)
        wait_until(lambda: len(slots._waiting) == len(waiting))

    slots.release(processes[1])
    waiting[1].join(300)
    assert order == ["bea"], "ann came first and has one at work"
    slots.release(processes[0])
    waiting[0].join(300)
    assert order == ["bea", "ann"]


def test_a_process_keeps_its_slot_between_the_requests_of_a_page_for_a_while():
    now = [0.0]
    slots = ProcessSlots(1, clock=lambda: now[0])
    process = JsonLinesProcess(WORKER, log_file=Path("unused"))
    for moment in (0.0, 0.9, 1.8):
        now[0] = moment
        list(slots.acquire(process, "ann"))
        slots.release(process)
        assert not slots.has_room("bea")
    now[0] = 2.9
    assert slots.has_room("bea")
    for moment in (3.0, 12.0, 19.0, 20.0):
        now[0] = moment
        list(slots.acquire(process, "ann"))
        slots.release(process)
    assert slots.has_room("bea"), "who asks without a pause keeps it no longer than the others can wait"


def test_all_processes_of_a_lab_end_when_idle_and_start_again(pool_of):
    pool = pool_of("ann", slots_for(2), idle_seconds=0.2)
    first = pool.call("echo", {})["pid"]

    wait_until(lambda: not psutil.pid_exists(first))

    assert pool.call("echo", {})["pid"] != first


def test_a_closed_pool_starts_no_process_any_more(pool_of):
    slots = slots_for(1)
    pool, other = pool_of("ann", slots), pool_of("bea", slots)
    pool.call("echo", {})
    pool.close(timeout_seconds=0.5)

    with pytest.raises(WorkerError):
        pool.call("echo", {})
    assert not pool.pids
    assert other.call("echo", {})["pid"], "its place is free"

import itertools
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.errors import DeviceError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder, Wait, hold_devices
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.messages import CancelledRequestError


@pytest.fixture
def book(home):
    return LeaseBook(home, clock=lambda: 1000.0)  # where no request expires


def holder(process: ProcessIdentity | None = None, **values: Any) -> LeaseHolder:
    process = process or ProcessIdentity.current()
    return LeaseHolder(**{"purpose": "training", "title": "Run A", "process": process, **values})


def test_a_device_has_one_holder_and_the_others_hear_who(book, another_process):
    book.take(["cuda:0"], holder(another_process, purpose="chat", title="qwen"))

    with pytest.raises(DeviceError, match=r"GPU 0 is in use for chat \(qwen\)"):
        book.take(["cuda:0"], holder())
    book.take(["cuda:1"], holder())
    assert book.holder("cuda:0").title == "qwen"
    assert book.holder("cpu") is None


def test_what_another_person_does_is_not_named_to_who_waits(book, another_process):
    book.take(["cuda:0"], holder(another_process, title="SECRET", owner="bob"))

    with pytest.raises(DeviceError, match=r"^GPU 0 is in use by bob for training\."):
        book.take(["cuda:0"], holder(owner="ann"))
    with pytest.raises(DeviceError, match=r"in use for training \(SECRET\)"):
        book.take(["cuda:0"], holder(owner="bob"))
    with pytest.raises(DeviceError, match=r"in use for training \(SECRET\)"):
        book.take(["cuda:0"], holder(owner=""))
    assert book.holders()["cuda:0"].as_seen_by("ann").why_wait == (
        "Waiting for the device, which is in use by bob for training."
    )


def test_several_devices_are_given_together_or_not_at_all(book, another_process):
    book.take(["cuda:1"], holder(another_process))

    with pytest.raises(DeviceError):
        book.take(["cuda:0", "cuda:1"], holder())
    assert book.holder("cuda:0") is None


def write_until_full(room: int) -> Callable[[Path, str], None]:
    """Write so many files, until a disk is full."""
    numbers = itertools.count()

    def write(path: Path, content: str) -> None:
        if next(numbers) >= room:
            raise StorageError(f"{path.name} cannot be written (No space left on device).", "Free some space.")
        write_atomically(path, content)

    return write


def test_a_lease_ends_with_its_process(book):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.from_pid(process.pid)
    assert identity is not None
    book.take(["cpu"], holder(identity))
    assert book.holder("cpu") is not None

    process.communicate(b"\n")

    assert book.holder("cpu") is None
    book.take(["cpu"], holder())


def test_a_lease_of_a_reused_pid_or_an_earlier_boot_is_void(book):
    ourselves = ProcessIdentity.current()
    book.take(["cpu"], holder(ourselves.model_copy(update={"start_time": ourselves.start_time - 9})))
    assert book.holder("cpu") is None
    book.take(["cpu"], holder(ourselves.model_copy(update={"boot_id": "before"})))
    assert book.holder("cpu") is None


def test_handing_over_needs_to_hold(book, another_process):
    ourselves = ProcessIdentity.current()
    book.take(["cpu"], holder(ourselves, run_id="run-1"))
    book.hand_over(["cpu"], ourselves, holder(another_process, run_id="run-1"))

    assert book.holder("cpu").process == another_process
    assert book.holder_of_run("run-1").process == another_process
    with pytest.raises(DeviceError, match="its lease has ended"):
        book.hand_over(["cpu"], ourselves, holder(ourselves, run_id="run-1"))


def test_releasing_frees_everything_of_that_process_only(book, another_process):
    book.take(["cuda:0"], holder(another_process))
    book.take(["cuda:1", "cpu"], holder())

    book.release(ProcessIdentity.current())

    assert book.holder("cuda:0") is not None
    assert book.holder("cuda:1") is None
    assert book.holder("cpu") is None


def test_preemption_is_requested_of_an_idle_chat_and_not_of_a_training(book, another_process):
    ourselves = ProcessIdentity.current()
    book.take(["cuda:0"], holder(ourselves, purpose="chat", preemptible=True))
    book.take(["cuda:1"], holder(another_process))

    assert book.request_preemption("cuda:0")
    assert not book.request_preemption("cuda:1")
    assert book.is_preemption_requested(ourselves)
    assert not book.is_preemption_requested(another_process)

    book.release(ourselves)
    book.take(["cuda:0"], holder(ourselves, purpose="chat", preemptible=True))
    assert not book.is_preemption_requested(ourselves), "an old request does not follow the next lease"


def test_one_server_holds_a_device_for_one_thing_at_a_time(book):
    book.take(["cpu"], holder(run_id="run-1"))

    with pytest.raises(DeviceError, match=r"in use for training \(Run A\)"):
        book.take(["cpu"], holder(run_id="run-2", title="Run B"))
    with pytest.raises(DeviceError, match="its lease has ended"):
        book.hand_over(["cpu"], ProcessIdentity.current(), holder(run_id="run-2"))
    book.take(["cpu"], holder(run_id="run-1"))
    assert book.holder("cpu").run_id == "run-1"


def test_releasing_a_run_frees_what_is_held_for_it_by_whomever(book, another_process):
    book.take(["cuda:0"], holder(another_process, run_id="run-1"))
    book.take(["cuda:1"], holder(run_id="run-1"))
    book.take(["cpu"], holder(run_id="run-2"))

    book.release_run("run-1")

    assert [book.holder(name) is None for name in ("cuda:0", "cuda:1", "cpu")] == [True, True, False]


def test_a_preemption_request_that_is_not_repeated_expires(home):
    now = [1000.0]
    book, ourselves = LeaseBook(home, clock=lambda: now[0]), ProcessIdentity.current()
    book.take(["cpu"], holder(purpose="chat", preemptible=True))

    book.request_preemption("cpu")
    now[0] += 5
    assert book.is_preemption_requested(ourselves)
    now[0] += 6
    assert not book.is_preemption_requested(ourselves)
    book.request_preemption("cpu")
    assert book.is_preemption_requested(ourselves)


def test_devices_handed_over_in_part_on_a_full_disk_follow_once_there_is_room(book, another_process, monkeypatch):
    ourselves, worker = ProcessIdentity.current(), holder(another_process, run_id="run-1")
    book.take(["cuda:0", "cuda:1"], holder(ourselves, run_id="run-1"))
    with monkeypatch.context() as full:
        full.setattr("loratory.engine.hardware.lease.write_atomically", write_until_full(1))
        with pytest.raises(StorageError):
            book.hand_over(["cuda:0", "cuda:1"], ourselves, worker)

    book.hand_over(["cuda:0", "cuda:1"], ourselves, worker)

    assert [book.holder(name).process for name in ("cuda:0", "cuda:1")] == [another_process] * 2


@pytest.fixture
def chat(another_process):
    return LeaseHolder(purpose="chat", title="a model", process=another_process, preemptible=True)


@pytest.fixture
def run():
    return LeaseHolder(purpose="training", title="a run", process=ProcessIdentity.current())


def test_preemptible_holders_release_and_then_all_are_taken(book, run, chat):
    book.take(["cuda:1"], chat)
    waits = []

    def leave(present):
        waits.append(present.title)
        assert book.is_preemption_requested(chat.process)
        book.release(chat.process)

    hold_devices(book, ("cuda:0", "cuda:1"), run, Wait(math.inf, leave))

    assert waits == ["a model"]
    assert [book.holder(name).title for name in ("cuda:0", "cuda:1")] == ["a run", "a run"]


def test_who_waits_can_be_stopped(book, run, chat):
    stopped = threading.Event()
    book.take(["cpu"], chat)

    with pytest.raises(CancelledRequestError):
        hold_devices(book, ("cpu",), run, Wait(math.inf, lambda _: stopped.set(), stopped))

    assert book.holder("cpu").title == "a model"

"""Taking devices: all or none, with a request to preemptible holders."""

import math
import threading

import pytest

from engine.errors import DeviceError
from engine.hardware.lease import LeaseBook, LeaseHolder, Wait, hold_devices
from engine.processes.liveness import ProcessIdentity
from engine.processes.messages import CancelledRequestError


@pytest.fixture
def book(home):
    return LeaseBook(home, clock=lambda: 1000.0)  # where no request expires


@pytest.fixture
def chat(another_process):
    return LeaseHolder(purpose="chat", title="a model", process=another_process, preemptible=True)


@pytest.fixture
def run():
    return LeaseHolder(purpose="training", title="a run", process=ProcessIdentity.current())


def test_several_devices_are_taken_together(book, run):
    hold_devices(book, ("cuda:0", "cuda:1"), run, Wait(0.0))

    assert [book.holder(name).title for name in ("cuda:0", "cuda:1")] == ["a run", "a run"]


def test_none_is_taken_while_someone_holds_one_of_them(book, run, chat):
    book.take(["cuda:1"], chat)

    with pytest.raises(DeviceError, match="GPU 1 is in use for chat"):
        hold_devices(book, ("cuda:0", "cuda:1"), run, Wait(0.0))

    assert book.holder("cuda:0") is None


def test_preemptible_holders_release_and_then_all_are_taken(book, run, chat):
    book.take(["cuda:1"], chat)
    waited = []

    def leave(present):
        waited.append(present.title)
        assert book.is_preemption_requested(chat.process)
        book.release(chat.process)

    hold_devices(book, ("cuda:0", "cuda:1"), run, Wait(math.inf, leave))

    assert waited == ["a model"]
    assert [book.holder(name).title for name in ("cuda:0", "cuda:1")] == ["a run", "a run"]


def test_who_waits_can_be_stopped(book, run, chat):
    stopped = threading.Event()
    book.take(["cpu"], chat)

    with pytest.raises(CancelledRequestError):
        hold_devices(book, ("cpu",), run, Wait(math.inf, lambda _: stopped.set(), stopped))

    assert book.holder("cpu").title == "a model"

"""Two hosts that share a home and see nothing of each other's locks: exactly one of them supervises."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.supervision.seat import SeatTimes, SupervisorSeat, seat_holder
from loratory.engine.supervision.supervisor import Supervisor, reconcile
from tests.supervision.fake_runs import config_for, executions, fake_settings, wait_for_state
from tests.supervision.on_host import start_host as start_host

HOURS = 3600.0


class Host:
    """One host's way to the seat, with a clock that the test sets."""

    def __init__(self, home, name: str, as_host: Callable[[str], None]) -> None:
        self._name, self._as_host, self.now = name, as_host, 0.0
        self._seat = SupervisorSeat(home, SeatTimes(beat_seconds=10.0, stale_seconds=150.0, clock=lambda: self.now))

    def __getattr__(self, method: str):
        self._as_host(self._name)
        return getattr(self._seat, method)


@pytest.fixture
def on_host(home, monkeypatch):
    here = ProcessIdentity.current()

    def as_host(name: str) -> None:
        identity = here.model_copy(update={"host": name, "boot_id": f"boot of {name}"})
        monkeypatch.setattr(ProcessIdentity, "current", classmethod(lambda _: identity))
        monkeypatch.setattr("loratory.engine.processes.liveness.boot_id", lambda: identity.boot_id)
        monkeypatch.setattr("platform.node", lambda: name)

    return lambda name: Host(home, name, as_host)


def test_another_host_waits_while_the_holder_shows_that_it_lives(on_host):
    here, there = on_host("login1"), on_host("login2")
    assert here.acquire()

    for _ in range(100):
        here.now += 100.0
        there.now += 100.0
        assert here.renew()
        assert not there.acquire()


def test_another_host_takes_over_by_its_own_clock_once_the_holder_is_silent(on_host):
    here, there = on_host("login1"), on_host("login2")
    here.now = 50 * HOURS  # clocks of two hosts have nothing in common
    assert here.acquire()
    assert not there.acquire(), "it has seen nothing of its silence yet"

    there.now += 151.0
    assert there.acquire()

    here.now += 1.0
    assert here.renew(), "not due"
    here.now += 10.0
    assert not here.renew(), "it wakes up and sees that it was replaced"
    assert not here.acquire()
    assert there.renew()


def test_a_released_seat_is_free_at_once_and_so_is_its_own_for_a_restarted_host(on_host, home):
    here, there = on_host("login1"), on_host("login2")
    assert here.acquire()
    here.release()
    assert seat_holder(home) is None
    assert there.acquire()
    assert seat_holder(home).host == "login2"

    assert on_host("login2").acquire(), "its former process is gone, or the lock would not be free"


def test_of_many_hosts_that_see_a_free_seat_at_once_one_gets_it(on_host, monkeypatch):
    start = threading.Barrier(8)
    create = SupervisorSeat._create
    hosts = [on_host(f"login{number}") for number in range(8)]

    def all_at_once(seat: SupervisorSeat, number: int) -> bool:
        start.wait()  # each has seen that it is free
        return create(seat, number)

    monkeypatch.setattr(SupervisorSeat, "_create", all_at_once)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda host: host._seat.acquire(), hosts))

    assert sorted(results) == [False] * 7 + [True]


def test_a_command_that_looks_once_leaves_runs_to_the_host_that_supervises(on_host, home, store):
    there = on_host("login2")
    assert there.acquire()
    on_host("login1").is_free()
    run = store.create(config_for())

    reconcile(home, fake_settings())
    assert run.folder.read_saved_state() is None

    there.release()
    on_host("login1").is_free()
    reconcile(home, fake_settings())
    assert run.folder.read_saved_state() is not None


def test_of_two_servers_on_two_hosts_one_supervises_until_it_dies(home, store, start_host):
    first = start_host("login1")
    assert first.stdout.readline() == "supervising\n"
    second = start_host("login2")
    assert second.stdout.readline() == "standing_by\n"

    run = store.create(config_for("steps=3"))
    wait_for_state(run, "completed")
    first.kill()
    (home.root / "time-flies").touch()
    assert second.stdout.readline() == "supervising\n"
    later = store.create(config_for("steps=3"))
    wait_for_state(later, "completed")

    assert executions(run) == executions(later) == ["1"]
    third = Supervisor(home, fake_settings())
    assert third.start() == "standing_by"
    assert "on login2) already supervises" in third.explain_standing_by()
    third.stop()

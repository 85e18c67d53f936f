"""Nothing in the server's folder grows without end."""

import sys

from loratory.engine.processes.spawn import spawn
from loratory.engine.supervision.supervisor import Housekeeping
from tests.waiting import wait_until


def long_log(home):
    log = home.logs / "chat.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"line\n" * 1_200_000 + b"the newest\n")
    return log


def test_a_log_of_a_process_that_lives_on_is_cut_while_it_lives(home):
    log = long_log(home)

    Housekeeping(home).tick()

    assert log.stat().st_size < 1_500_000
    assert log.read_bytes().endswith(b"line\nthe newest\n")


def test_a_log_that_another_machine_of_this_home_has_open_is_not_cut(home, monkeypatch):
    with monkeypatch.context() as there:
        there.setattr("platform.node", lambda: "another-host")
        log = long_log(home)
    before = log.stat().st_size

    Housekeeping(home).tick()

    assert log.stat().st_size == before


def test_logs_are_looked_at_again_after_a_while_and_not_at_every_tick(home):
    now = [0.0]
    housekeeping = Housekeeping(home, clock=lambda: now[0])
    housekeeping.tick()
    log = long_log(home)
    housekeeping.tick()
    assert log.stat().st_size > 5_000_000

    now[0] += 61.0
    housekeeping.tick()

    assert log.stat().st_size < 1_500_000


def test_the_supervisor_keeps_house(home, start_supervisor):
    log = long_log(home)
    start_supervisor()
    wait_until(lambda: log.stat().st_size < 1_500_000)


def test_a_process_begins_with_a_bounded_log_where_no_one_supervises(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes(b"line\n" * 5_000_000)

    assert spawn([sys.executable, "-c", "print('hello')"], log_file=log).wait() == 0

    assert log.stat().st_size < 6_000_000
    assert log.read_bytes().endswith(b"line\nhello\n")

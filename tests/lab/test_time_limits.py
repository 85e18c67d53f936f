"""Who may run for how long in a lab, without processes."""

import time

import pytest
from argon2 import PasswordHasher

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.lab import LabSettings, save_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.lab.supervision import LabSupervision
from loratory.engine.runs.control import request_stop, time_limit_hours
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import config_for

HOUR = 3600.0


@pytest.fixture
def supervise(home):
    """Return a function that gives the limit for which a run is stopped after some hours."""
    database = open_database(home)
    accounts = Accounts(database, Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)))
    for name, role in (("ann", "member"), ("gil", "guest")):
        accounts.accept(accounts.invite(role, by="").token, name, "correct horse battery")
    save_settings(home, LabSettings(limits=LabLimits(longest_run_hours=5, guest_run_hours=1)))

    def stop_limit(owner: str, hours: float, earlier_hours: float = 0.0, device: str = "cpu") -> float | None:
        run = RunStore(home, owner).create(config_for())
        lab, now = LabSupervision(home, programs=lambda _: ()), time.time()
        lab.take_turn({}, {})
        first = RunState(
            state="running", attempt=1, device=device, attempt_started=now - (hours + earlier_hours) * HOUR
        )
        ended_state = first.model_copy(update={"state": "stopped", "ended": now - hours * HOUR})
        lab.note_end(run, first, ended_state)
        second = first.model_copy(update={"attempt": 2, "attempt_started": now - hours * HOUR})
        lab.take_turn({}, {run.id: (run, second)})
        return time_limit_hours(run.folder)

    yield stop_limit
    database.close()


def test_a_member_may_run_for_the_limit_in_each_attempt(supervise):
    assert supervise("ann", 4.9) is None
    assert supervise("ann", 4.9, earlier_hours=3) is None
    assert supervise("ann", 5.1) == 5


def test_a_job_elsewhere_may_run_for_longer(supervise):
    assert supervise("ann", 50, device="1x Nvidia L4 at Hugging Face") is None


def test_a_guest_may_run_for_the_limit_over_all_attempts(supervise):
    assert supervise("gil", 0.5) is None
    assert supervise("gil", 1.1) == 1
    assert supervise("gil", 0.5, earlier_hours=0.6) == 1


def test_a_persons_own_request_to_stop_is_not_taken_for_the_limit(store):
    run = store.create(config_for())
    request_stop(run)

    assert time_limit_hours(run.folder) is None

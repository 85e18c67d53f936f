"""A home that several machines or containers share: whose process is whose, and whose device is whose."""

import os
import time

import pytest

from engine.executors.local import LocalContext, LocalExecutor
from engine.hardware.lease import LeaseBook, LeaseHolder
from engine.processes.liveness import ProcessIdentity
from engine.runs.control import request_cancel
from engine.runs.run import RunState, WorkerRecord
from engine.runs.supervision.progress_watch import SilenceLimits
from engine.runs.supervision.supervisor import SupervisorLoop
from engine.runs.supervision.worker_monitor import Patience, WorkerMonitor
from tests.runs.supervision import config_for, cpu, executions, fake_settings, wait_for_step, wait_until

ELSEWHERE = {"host": "another-host", "boot_id": "of another host"}
IN_A_CONTAINER = {"host": "a-container", "pid_namespace": "pid:[1]"}
PATIENT = Patience(silence=SilenceLimits(idle_seconds=60.0))


def us(**changes: object) -> ProcessIdentity:
    return ProcessIdentity.current().model_copy(update=changes)


def watched_elsewhere(store, idle_seconds: float, **where: object):
    run = store.create(config_for("steps=5"))
    record = WorkerRecord(**us(**where).model_dump(), process_group=os.getpgid(0), attempt=1)
    run.folder.process.write_text(record.model_dump_json())
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    patience, state = Patience(silence=SilenceLimits(idle_seconds=idle_seconds)), run.folder.read_state()
    context = LocalContext(LeaseBook(store.home), lambda *_: None, patience.claim_seconds)
    return run, WorkerMonitor(run, state, LocalExecutor(context).attach(run, state), patience)


@pytest.mark.parametrize(
    ("changes", "liveness"),
    [
        ({}, "alive"),
        ({"start_time": 1.0}, "gone"),
        ({"boot_id": "before"}, "gone"),
        ({"boot_id": "before", "host": ""}, "gone"),
        (ELSEWHERE, "unknown"),
        (IN_A_CONTAINER, "unknown"),
        ({"host": "", "pid_namespace": ""}, "alive"),
        ({"host": "renamed"}, "alive"),
    ],
)
def test_whether_a_process_lives_is_yes_no_or_unknown(changes, liveness):
    assert us(**changes).liveness() == liveness
    assert us(**changes).is_alive() == (liveness == "alive")
    if liveness != "alive":
        assert not us(**changes).kill()


def test_machines_that_share_a_home_lease_their_own_devices(home, monkeypatch):
    ours = LeaseHolder(purpose="training", title="Run A", process=us())
    theirs = LeaseHolder(purpose="chat", title="qwen", process=us(**ELSEWHERE))
    LeaseBook(home).take(["cuda:0"], ours)

    with monkeypatch.context() as there:
        there.setattr("engine.hardware.lease.boot_id", lambda: ELSEWHERE["boot_id"])
        there.setattr("engine.processes.liveness.boot_id", lambda: ELSEWHERE["boot_id"])
        there.setattr("platform.node", lambda: ELSEWHERE["host"])
        LeaseBook(home).take(["cuda:0"], theirs)
        assert LeaseBook(home).holder("cuda:0").title == "qwen"

    assert LeaseBook(home).holder("cuda:0").title == "Run A", "neither overwrites or frees the other's"


@pytest.mark.parametrize("lives", [True, False])
def test_a_device_that_a_run_in_another_container_holds_is_free_when_its_worker_is_gone(home, store, lives):
    run = store.create(config_for())
    claim = run.folder.claim()
    holder = LeaseHolder(purpose="training", title="Run A", process=us(**IN_A_CONTAINER), run_id=run.id)
    LeaseBook(home).take(["cuda:0"], holder)
    if not lives:
        claim.lock.release()

    assert (LeaseBook(home).holder("cuda:0") is not None) == lives
    claim.lock.release()


def test_a_worker_of_another_host_whose_lock_is_not_seen_is_not_taken_for_dead(store):
    run, monitor = watched_elsewhere(store, 60.0, **ELSEWHERE)

    assert monitor.look().state in ("starting", "running")
    assert executions(run) == []


def test_a_worker_of_another_host_that_gives_no_sign_is_given_up_and_the_machine_named(store):
    _, monitor = watched_elsewhere(store, 0.05, **ELSEWHERE)

    wait_until(lambda: monitor.look().is_final)

    state = monitor.look()
    assert (state.state, state.reason) == ("interrupted", "host_lost")
    assert "another-host" in state.cause


def test_a_worker_whose_container_is_gone_is_known_by_its_free_lock(store):
    _, monitor = watched_elsewhere(store, 60.0, **IN_A_CONTAINER)

    assert (monitor.look().state, monitor.look().reason) == ("interrupted", "unknown")


def test_the_device_of_a_worker_on_another_host_is_not_one_of_ours(home, store):
    watched_elsewhere(store, 60.0, **ELSEWHERE)
    loop = SupervisorLoop(home, fake_settings(patience=PATIENT))
    ours = store.create(config_for("steps=2"))

    wait_until(lambda: loop.tick() or ours.folder.read_state().is_final)

    assert ours.folder.read_state().state == "completed"


@pytest.mark.parametrize("skew_seconds", [-3600, 3600], ids=["behind", "ahead"])
def test_a_worker_has_its_time_to_obey_a_cancel_whatever_a_file_servers_clock_shows(home, store, skew_seconds):
    patience = Patience(silence=fake_settings().patience.silence, cancel_seconds=600.0)
    loop = SupervisorLoop(home, fake_settings(patience=patience, devices=lambda: (cpu(),)))
    run = store.create(config_for("steps=50000 pace=0.5"))
    wait_until(lambda: loop.tick() or run.folder.read_state().state == "running")
    wait_for_step(run, 1)
    request_cancel(run)
    os.utime(run.folder.cancel_request, (time.time() + skew_seconds,) * 2)

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    lines = run.folder.events.read_text().splitlines()
    assert '"phase":"stopped"' in lines[-1], "it was killed before it could say so"

"""A home that several machines or containers share: whose process is whose, and whose device is whose."""

import os
import time

import pytest

from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.places.local import LocalContext, LocalExecutor
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.activity import ReportedActivity, SilenceLimits, reported_activity
from loratory.engine.runs.control import request_cancel
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.run import RunState, WorkerRecord
from loratory.engine.supervision.supervisor import SupervisorLoop
from loratory.engine.supervision.worker_monitor import Timeouts, WorkerMonitor
from tests.event_log import write_log
from tests.supervision.fake_runs import config_for, cpu, fake_settings, wait_for_step
from tests.waiting import wait_until

ELSEWHERE = {"host": "another-host", "boot_id": "of another host"}
IN_A_CONTAINER = {"host": "a-container", "pid_namespace": "pid:[1]"}


def us(**changes: object) -> ProcessIdentity:
    return ProcessIdentity.current().model_copy(update=changes)


def job_of(store, run):
    context = LocalContext(LeaseBook(store.home), lambda *_: None, 0.0, unseen_seconds=0.05)
    return LocalExecutor(context).attach(run, run.folder.read_state())


def watched_elsewhere(store, cancel_seconds: float = 5.0, **where: object):
    run = store.create(config_for("steps=5"))
    record = WorkerRecord(**us(**where).model_dump(), process_group=os.getpgid(0), attempt=1)
    run.folder.process.write_text(record.model_dump_json())
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    timeouts = Timeouts(silence=SilenceLimits(*[0.0] * 5), cancel_seconds=cancel_seconds)  # any silence is too long
    return run, WorkerMonitor(run, run.folder.read_state(), job_of(store, run), timeouts)


@pytest.mark.parametrize(
    ("changes", "liveness"),
    [
        ({}, "alive"),
        ({"start_time": 1.0}, "gone"),
        ({"boot_id": "before"}, "gone"),
        (ELSEWHERE, "unknown"),
        (IN_A_CONTAINER, "unknown"),
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
        there.setattr("loratory.engine.hardware.lease.boot_id", lambda: ELSEWHERE["boot_id"])
        there.setattr("loratory.engine.processes.liveness.boot_id", lambda: ELSEWHERE["boot_id"])
        there.setattr("platform.node", lambda: ELSEWHERE["host"])
        LeaseBook(home).take(["cuda:0"], theirs)
        assert LeaseBook(home).holder("cuda:0").title == "qwen"

    assert LeaseBook(home).holder("cuda:0").title == "Run A", "neither overwrites or frees the other's"


@pytest.mark.parametrize("lives", [True, False])
def test_a_device_of_a_run_in_another_container_is_free_when_its_worker_is_gone(home, store, lives):
    run = store.create(config_for())
    claim = run.folder.claim()
    holder = LeaseHolder(purpose="training", title="Run A", process=us(**IN_A_CONTAINER), run_id=run.id)
    LeaseBook(home).take(["cuda:0"], holder)
    if not lives:
        claim.lock.release()

    assert (LeaseBook(home).holder("cuda:0") is not None) == lives
    claim.lock.release()


def test_nothing_follows_from_the_silence_of_another_host_but_words_for_people(store):
    _, monitor = watched_elsewhere(store, **ELSEWHERE)

    states = [monitor.poll() for _ in range(3)]

    assert {state.state for state in states} <= {"starting", "running"}
    assert states[-1].reason == "executor_unreachable"
    assert "another-host" in states[-1].cause
    assert states[-1].silence_limit_seconds is None, "no end is announced that nothing here can bring about"


def test_a_worker_of_another_host_that_ended_is_known_by_its_last_word(store):
    run, monitor = watched_elsewhere(store, **ELSEWHERE)
    write_log(run.folder.events, StatusData(phase="finished"))

    assert monitor.poll().state == "completed"


def test_a_cancel_that_another_host_does_not_answer_ends_the_run_and_names_the_host(store):
    run, monitor = watched_elsewhere(store, cancel_seconds=0.0, **ELSEWHERE)
    assert not monitor.poll().is_final
    request_cancel(run)

    wait_until(lambda: monitor.poll().is_final)

    state = monitor.poll()
    assert (state.state, state.reason) == ("stopped", "cancelled")
    assert "another-host did not answer" in state.advice


def test_a_worker_that_hangs_on_another_host_is_not_busy_because_of_pids_here(store):
    run, _ = watched_elsewhere(store, **ELSEWHERE)
    here, there = ProcessIdentity.current(), run.folder.read_worker()
    assert there.pid == here.pid
    with reported_activity(run.folder, 1, every_seconds=0.01):
        wait_until(run.folder.activity.exists)
    activity = job_of(store, run).activity()
    report = activity.cpu_seconds()
    used = here.cpu_seconds() + 0.05

    wait_until(lambda: here.cpu_seconds() > used)

    assert activity.cpu_seconds() == report
    assert ReportedActivity(run.folder, 2).cpu_seconds() is None, "of another attempt"


def test_a_log_that_another_host_has_open_is_not_cut(store):
    run, _ = watched_elsewhere(store, **ELSEWHERE)
    run.folder.log.touch()
    os.truncate(run.folder.log, 30_000_000)

    job_of(store, run).fetch_logs()
    assert run.folder.log.stat().st_size == 30_000_000

    run.folder.process.unlink()
    job_of(store, run).fetch_logs()
    assert run.folder.log.stat().st_size < 30_000_000


def test_a_worker_whose_container_is_gone_is_known_by_its_free_lock(store):
    _, monitor = watched_elsewhere(store, **IN_A_CONTAINER)

    assert (monitor.poll().state, monitor.poll().reason) == ("interrupted", "unknown")


def test_the_device_of_a_worker_on_another_host_is_not_one_of_ours(home, store):
    watched_elsewhere(store, **ELSEWHERE)
    loop = SupervisorLoop(home, fake_settings())
    ours = store.create(config_for("steps=2"))

    wait_until(lambda: loop.tick() or ours.folder.read_state().is_final)

    assert ours.folder.read_state().state == "completed"


def test_a_worker_has_its_time_to_obey_a_cancel_whatever_a_file_servers_clock_shows(home, store):
    timeouts = Timeouts(silence=fake_settings().timeouts.silence, cancel_seconds=600.0)
    loop = SupervisorLoop(home, fake_settings(timeouts=timeouts, devices=lambda: (cpu(),)))
    run = store.create(config_for("steps=50000 pace=0.5"))
    wait_until(lambda: loop.tick() or run.folder.read_state().state == "running")
    wait_for_step(run, 1)
    request_cancel(run)
    os.utime(run.folder.cancel_request, (time.time() - 3600,) * 2)

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    lines = run.folder.events.read_text().splitlines()
    assert '"phase":"stopped"' in lines[-1], "it was killed before it could say so"

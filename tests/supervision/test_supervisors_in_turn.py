"""What the next supervisor makes of runs whose supervisor, worker, machine or state files are gone."""

import os

from loratory.engine.processes.liveness import FileLock, ProcessIdentity
from loratory.engine.runs.control import request_cancel
from loratory.engine.runs.run import RunState, WorkerRecord
from loratory.engine.supervision.supervisor import reconcile, supervisor_of
from loratory.engine.supervision.worker_monitor import Timeouts
from tests.supervision.fake_runs import (
    config_for,
    continue_worker,
    executions,
    fake_settings,
    wait_for_state,
    wait_for_step,
    worker_of,
)
from tests.waiting import wait_until


def test_the_second_supervisor_of_a_home_refuses_reports_it_and_takes_over(store, start_supervisor, home):
    first, second = start_supervisor(), start_supervisor()
    wait_until(lambda: supervisor_of(home) is not None)

    assert (first.role, second.role) == ("supervising", "standing_by")
    assert f"(pid {os.getpid()}) already supervises" in second.explain_standing_by()
    first.stop()
    wait_until(lambda: second.role == "supervising")
    run = store.create(config_for("steps=3"))
    wait_for_state(run, "completed")


def test_a_supervisor_that_stops_leaves_its_workers_and_the_next_one_finds_them(store, start_supervisor):
    first = start_supervisor()
    run = store.create(config_for("steps=10 hold=3"))
    wait_for_step(run, 3)
    worker = worker_of(run)
    first.stop()
    assert worker.is_alive()
    continue_worker(run)

    start_supervisor()
    state = wait_for_state(run, "completed", "failed", "interrupted")

    assert state.state == "completed"
    assert executions(run) == ["1"]
    assert worker_of(run).pid == worker.pid


def test_a_reused_pid_is_not_taken_for_the_worker_and_not_killed(store, start_supervisor):
    run = store.create(config_for("steps=5"))
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    earlier = ProcessIdentity.current().model_copy(update={"start_time": 1.0})
    record = WorkerRecord(**earlier.model_dump(), process_group=os.getpgid(0), attempt=1)
    run.folder.process.write_text(record.model_dump_json())
    start_supervisor()

    assert "while no supervisor was running" in wait_for_state(run, "interrupted").cause


def test_a_worker_that_a_dead_supervisor_had_only_meant_to_start_is_started_once(store, start_supervisor):
    run = store.create(config_for("steps=3"))
    run.folder.write_state(RunState(state="starting", attempt=1, started=1.0, device="cpu"))
    start_supervisor(timeouts=Timeouts(claim_seconds=0.3))

    assert wait_for_state(run, "completed").attempt == 2
    assert executions(run) == ["2"]


def test_a_command_that_looks_once_brings_states_up_to_date_and_starts_nothing(store, home, start_supervisor):
    first = start_supervisor()
    run = store.create(config_for("steps=3 hold=1"))
    wait_for_step(run, 1)
    first.stop()
    continue_worker(run)
    wait_until(lambda: not worker_of(run).is_alive())
    waiting = store.create(config_for("steps=2"))
    assert run.folder.read_state().state in ("starting", "running")

    reconcile(home, fake_settings())

    assert run.folder.read_state().state == "completed"
    assert waiting.folder.read_state().state == "queued"
    assert not FileLock(home.server / "supervisor.lock").is_held_by_another()


def test_a_run_cancelled_by_commands_that_look_once_each_is_cancelled(store, home, start_supervisor):
    """The one that kills the worker is not the one that finds it dead."""
    first = start_supervisor()
    run = store.create(config_for("steps=50000 deaf@99999"))
    wait_for_step(run, 2)
    first.stop()
    request_cancel(run)

    wait_until(lambda: reconcile(home, fake_settings()) or run.folder.read_state().is_final)

    state = run.folder.read_state()
    assert (state.state, state.cause.partition(" after")[0]) == ("stopped", "Cancelled")


def test_a_command_leaves_states_to_the_server_that_supervises(store, home):
    lock = FileLock(home.server / "supervisor.lock")
    assert lock.acquire(timeout_seconds=0)
    run = store.create(config_for())

    reconcile(home, fake_settings())

    assert run.folder.read_saved_state() is None
    assert FileLock(home.server / "supervisor.lock").is_held_by_another()
    lock.release()

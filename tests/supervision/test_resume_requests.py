"""Requests of people: to resume a run, and to start one anyway."""

import pytest

from loratory.engine.errors import RunError, StorageError
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.control import (
    request_cancel,
    request_resume,
    request_start_anyway,
    request_stop,
    resume_is_requested,
    resume_requests,
)
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.run import Run, RunState
from loratory.engine.supervision.supervisor import SupervisorLoop
from tests.supervision.fake_runs import (
    GIB,
    config_for,
    cpu,
    executions,
    fake_settings,
    wait_for_state,
    wait_for_step,
    worker_of,
)
from tests.waiting import wait_until


@pytest.fixture
def stopped_run(store) -> Run:
    """Return a run that was stopped in its first attempt."""
    run = store.create(config_for("steps=50000"))
    run.folder.write_state(RunState(state="stopped", attempt=1))
    return run


def resume_late(home: LoratoryHome, run: Run) -> None:
    """Write the request of a second tab that saw the run before the first one's request was handled."""
    (home.server / "resume" / f"{run.owner}~{run.id}").write_text("1")


def test_a_request_shows_which_attempt_it_is_about(home, stopped_run):
    request_resume(home, stopped_run)
    (home.server / "resume" / ".half-written.tmp").touch()

    (request,) = resume_requests(home)
    assert (request.owner, request.run_id, request.attempt) == (stopped_run.owner, stopped_run.id, 1)


def test_a_second_click_does_not_outlive_the_attempt(home, stopped_run):
    loop = SupervisorLoop(home, fake_settings())
    request_resume(home, stopped_run)
    loop.tick()
    resume_late(home, stopped_run)
    wait_for_step(stopped_run, 2)
    loop.tick()

    assert not resume_is_requested(home, stopped_run)
    request_cancel(stopped_run)
    wait_until(lambda: loop.tick() or stopped_run.folder.read_state().is_final)


def test_a_run_cancelled_between_two_looks_does_not_train_again_by_an_older_click(home, stopped_run):
    loop = SupervisorLoop(home, fake_settings())
    request_resume(home, stopped_run)
    wait_until(lambda: loop.tick() or stopped_run.folder.read_state().state == "running")
    resume_late(home, stopped_run)
    request_cancel(stopped_run)
    worker = worker_of(stopped_run)
    wait_until(lambda: not worker.is_alive())  # its lock is free a moment before it has ended

    for _ in range(5):
        loop.tick()

    assert (stopped_run.folder.read_state().state, executions(stopped_run)) == ("stopped", ["2"])
    assert stopped_run.folder.cancel_request.exists()
    assert not resume_is_requested(home, stopped_run)


def test_a_run_stopped_while_it_waits_is_not_put_back_by_an_older_click(home, stopped_run):
    loop = SupervisorLoop(home, fake_settings(devices=lambda: ()))
    request_resume(home, stopped_run)
    loop.tick()
    assert stopped_run.folder.read_state().state == "queued"
    resume_late(home, stopped_run)
    request_stop(stopped_run)

    loop.tick()
    loop.tick()

    assert stopped_run.folder.read_state().cause == "Removed from the queue."


def test_a_run_that_a_worker_has_is_not_resumed_after_it(home, stopped_run):
    """Someone started it by hand although its state still reports that it was stopped."""
    loop = SupervisorLoop(home, fake_settings())
    request_resume(home, stopped_run)
    claim = stopped_run.folder.claim()
    loop.tick()
    claim.lock.release()
    loop.tick()

    assert stopped_run.folder.read_state().state == "stopped"
    assert not resume_is_requested(home, stopped_run)


def test_a_complete_run_is_not_resumed_by_a_request_that_came_before_it_was(home, stopped_run):
    request_resume(home, stopped_run)
    stopped_run.folder.write_state(RunState(state="completed", attempt=1))
    SupervisorLoop(home, fake_settings()).tick()

    assert stopped_run.folder.read_state().state == "completed"
    assert not resume_is_requested(home, stopped_run)


def test_a_request_that_cannot_be_obeyed_for_want_of_room_is_obeyed_once_there_is(home, stopped_run, monkeypatch):
    loop = SupervisorLoop(home, fake_settings(devices=lambda: (cpu(free_gib=0),)))
    request_resume(home, stopped_run)

    def refuse(*_: object) -> None:
        raise StorageError("state.json cannot be written (No space left on device).", "Free some space.")

    with monkeypatch.context() as patch:
        patch.setattr("loratory.engine.runs.run.RunFolder.write_state", refuse)
        loop.tick(starts_runs=False)
    assert resume_is_requested(home, stopped_run)

    loop.tick(starts_runs=False)
    assert stopped_run.folder.read_state().state == "queued"


def test_a_run_that_waits_for_memory_starts_anyway_once_asked(store, start_supervisor):
    run = store.create(config_for("steps=2"), Provenance(predicted_bytes=10 * GIB))
    looks = []

    def devices():
        looks.append(1)
        return (cpu(free_gib=1),)

    start_supervisor(devices=devices)
    wait_until(lambda: run.folder.read_state().reason == "memory")
    count_before = len(looks)
    wait_until(lambda: len(looks) > count_before + 2)
    assert run.folder.read_state().state == "queued"

    request_start_anyway(run)

    wait_for_state(run, "completed")
    with pytest.raises(RunError, match="does not wait"):
        request_start_anyway(run)

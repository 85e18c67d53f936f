"""What becomes of runs whose machine was restarted, and which of them continue by themselves."""

import os
import signal

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.control import request_cancel, request_resume, request_stop
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.run import Run, RunFolder, RunState
from loratory.engine.supervision.supervisor import SupervisorLoop
from tests.event_log import write_log
from tests.supervision.fake_runs import (
    config_for,
    executions,
    fake_settings,
    move_to_an_earlier_boot,
    wait_for_state,
    wait_for_step,
    worker_of,
)
from tests.waiting import wait_until

BY_SIGTERM = "The system asked to end (SIGTERM). Saved after step 2 of 5."
RESUMES = {"resume_after_restart": True}


@pytest.fixture
def restarted_run(store) -> Run:
    """Return a run in its first attempt when the machine was restarted; it resumes automatically."""
    return leave_in_the_midst(store.create(config_for("steps=5", run=RESUMES)))


def leave_in_the_midst(run: Run) -> Run:
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    move_to_an_earlier_boot(run)
    return run


def log_end(run: Run, text: str) -> None:
    """Log the end that the worker reported."""
    stopped_by = "sigterm" if "(SIGTERM)" in text else "sigint" if "(SIGINT)" in text else "cancel"
    write_log(
        run.folder.events,
        StatusData(phase="training", message="Training.", total_steps=5),
        StatusData(phase="stopped", message=text, stopped_by=stopped_by),
    )


def next_server_finds(home: LoratoryHome, run: Run) -> str:
    """Return the state of a run after a server that starts none."""
    loop = SupervisorLoop(home, fake_settings())
    loop.tick(starts_runs=False)
    loop.tick(starts_runs=False)
    return run.folder.read_state().state


def test_a_machine_that_restarted_is_known_by_its_boot_id(store, start_supervisor, home):
    run = leave_in_the_midst(store.create(config_for("steps=20 checkpoint=5")))
    start_supervisor()
    state = wait_for_state(run, "interrupted")

    assert state.cause == "The machine was restarted after step 0."
    request_resume(home, run)
    assert wait_for_state(run, "completed").attempt == 2


def test_a_run_that_asked_for_it_resumes_by_itself_after_a_restart(restarted_run, start_supervisor):
    start_supervisor()

    assert wait_for_state(restarted_run, "completed").attempt == 2
    assert executions(restarted_run) == ["2"]


def test_a_restart_that_let_the_worker_save_is_one_as_well(restarted_run, home):
    log_end(restarted_run, BY_SIGTERM)

    assert next_server_finds(home, restarted_run) == "queued"


@pytest.mark.parametrize("mishap", ["", "term@6"], ids=["it saved", "it could not save"])
def test_a_server_that_saw_the_end_and_went_down_itself_changes_nothing(store, home, start_supervisor, mishap):
    first = start_supervisor()
    run = store.create(config_for(f"steps=40000 checkpoint=2 {mishap}", run=RESUMES))
    wait_for_step(run, 5)
    if not mishap:
        os.kill(worker_of(run).pid, signal.SIGTERM)
    end_state = wait_for_state(run, "stopped", "interrupted")
    first.stop()
    assert "(SIGTERM)" in end_state.cause
    assert next_server_finds(home, run) == end_state.state, "within one boot it may have been a scheduler's"

    move_to_an_earlier_boot(run)
    start_supervisor()
    assert wait_for_state(run, "running").attempt == 2
    text = f"Continued from step {end_state.resumable_step}."
    wait_until(lambda: text in [message.text for message in read_history(run.folder.events).messages])
    request_cancel(run)
    wait_for_state(run, "stopped")


@pytest.mark.parametrize("ask", [request_stop, request_cancel])
@pytest.mark.parametrize("text", ["", BY_SIGTERM], ids=["the worker was killed", "it saved"])
def test_what_a_restart_overtook_still_holds(restarted_run, home, ask, text):
    ask(restarted_run)
    if text:
        log_end(restarted_run, text)

    states = [next_server_finds(home, restarted_run) for _ in range(2)]

    assert set(states) <= {"stopped", "interrupted"}
    assert restarted_run.folder.stop_request.exists() or restarted_run.folder.cancel_request.exists()
    assert ("Cancelled" in restarted_run.folder.read_state().cause) == (ask is request_cancel)


def test_a_run_that_someone_takes_out_of_the_queue_stays_out(restarted_run, home):
    log_end(restarted_run, BY_SIGTERM)
    loop = SupervisorLoop(home, fake_settings())
    loop.tick(starts_runs=False)
    request_stop(restarted_run)
    loop.tick(starts_runs=False)

    states = [next_server_finds(home, restarted_run) for _ in range(2)]

    assert states == ["stopped", "stopped"]
    assert restarted_run.folder.read_state().cause == "Removed from the queue."


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (RunState(state="stopped", reason="sigterm", attempt=2), BY_SIGTERM),
        (RunState(state="completed", attempt=1, cause=BY_SIGTERM), BY_SIGTERM),
        (RunState(state="failed", attempt=1, cause=BY_SIGTERM), BY_SIGTERM),
    ],
)
def test_what_ended_otherwise_before_a_restart_does_not_continue_by_itself(store, home, state, text):
    run = store.create(config_for("steps=5", run=RESUMES))
    run.folder.write_state(state)
    move_to_an_earlier_boot(run)
    log_end(run, text)

    assert next_server_finds(home, run) == state.state


def test_a_run_that_did_not_ask_for_it_waits_for_a_click(store, home):
    run = leave_in_the_midst(store.create(config_for("steps=5")))
    log_end(run, BY_SIGTERM)

    assert next_server_finds(home, run) == "stopped"


@pytest.fixture
def make_room(monkeypatch):
    """Until it is called, the disk is too full to put a run into the queue."""
    write = RunFolder.write_state

    def refuse(self: RunFolder, state: RunState) -> None:
        if state.state == "queued":
            raise StorageError("state.json cannot be written (No space left on device).", "Free some space.")
        write(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_state", refuse)
        yield patch.undo


@pytest.mark.parametrize("has_ended", [False, True], ids=["its end was not seen", "its end was seen"])
def test_a_run_continues_once_there_is_room_to_say_so(restarted_run, home, make_room, has_ended):
    if has_ended:
        log_end(restarted_run, BY_SIGTERM)
        restarted_run.folder.write_state(RunState(state="stopped", reason="sigterm", attempt=1, cause=BY_SIGTERM))
    assert next_server_finds(home, restarted_run) == ("stopped" if has_ended else "running")

    make_room()

    assert next_server_finds(home, restarted_run) == "queued"
    assert next_server_finds(home, restarted_run) == "queued"
    assert restarted_run.folder.read_state().attempt == 1


def test_the_same_server_tries_again(restarted_run, home, make_room, monkeypatch):
    monkeypatch.setattr("loratory.engine.supervision.states._LOOK_AGAIN_SECONDS", 0.0)
    log_end(restarted_run, BY_SIGTERM)
    restarted_run.folder.write_state(RunState(state="stopped", reason="sigterm", attempt=1, cause=BY_SIGTERM))
    loop = SupervisorLoop(home, fake_settings())
    loop.tick()
    make_room()

    wait_until(lambda: loop.tick() or restarted_run.folder.read_state().state == "completed")

    assert executions(restarted_run) == ["2"]

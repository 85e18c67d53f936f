"""What becomes of a run under one supervisor: the queue, its device, its end."""

import itertools
import os
import signal

import psutil
import pytest

from loratory.engine.errors import RunError
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.control import request_cancel, request_resume, request_stop
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.run import RunFolder
from loratory.engine.supervision.queue import QueueOrder
from loratory.engine.supervision.worker_monitor import Timeouts
from tests.supervision.fake_runs import (
    GIB,
    config_for,
    continue_worker,
    cpu,
    executions,
    wait_for_state,
    wait_for_step,
    worker_of,
)
from tests.waiting import wait_until


def test_a_run_goes_from_the_queue_to_completed(store, start_supervisor, home, monkeypatch):
    observations: list[str] = []
    original = RunFolder.write_state

    def remember(self, state):
        observations.append(state.state)
        original(self, state)

    monkeypatch.setattr(RunFolder, "write_state", remember)
    run = store.create(config_for("steps=6 checkpoint=3 hold=5"))
    start_supervisor()
    wait_for_state(run, "running")
    continue_worker(run)
    state = wait_for_state(run, "completed", "failed")

    assert list(dict.fromkeys(observations)) == ["queued", "starting", "running", "completed"]

    assert (state.state, state.cause, state.attempt, state.device) == ("completed", "", 1, "cpu")
    assert state.started is not None
    assert state.ended is not None
    assert state.started <= state.ended
    assert read_history(run.folder.events).steps.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert executions(run) == ["1"]
    assert LeaseBook(home).holder("cpu") is None


def test_stop_saves_ends_and_leaves_no_process(store, start_supervisor):
    start_supervisor()
    run = store.create(config_for("steps=50000"))
    wait_for_step(run, 3)
    request_stop(run)
    state = wait_for_state(run, "stopped", "failed")

    step = read_history(run.folder.events).last_step
    assert state.state == "stopped"
    assert state.resumable_step == step
    assert state.cause == f"Stopped on request. Saved after step {step}."
    assert "can be used" in state.advice
    assert not worker_of(run).is_alive()
    with pytest.raises(RunError, match="already stopped"):
        request_stop(run)


def test_a_worker_that_ignores_a_cancel_is_ended(store, start_supervisor):
    start_supervisor()
    run = store.create(config_for("steps=50000 deaf@99999 checkpoint=2"))
    wait_for_step(run, 4)
    request_cancel(run)
    state = wait_for_state(run, "stopped", "failed")

    assert state.state == "stopped"
    assert "Cancelled after step" in state.cause
    assert "The checkpoint of step" in state.advice
    assert not worker_of(run).is_alive()


def test_a_stop_in_the_queue_takes_the_run_out_before_it_ever_began(store, start_supervisor):
    start_supervisor(devices=lambda: (cpu(free_gib=0),))
    run = store.create(config_for("steps=5"), Provenance(predicted_bytes=GIB))
    wait_until(lambda: run.folder.read_state().reason == "memory")
    request_stop(run)
    state = wait_for_state(run, "stopped")

    assert state.cause == "Removed from the queue before it began."
    assert executions(run) == []


def test_one_device_executes_one_run_after_the_other_in_the_order_of_the_queue(store, start_supervisor, home):
    runs = [store.create(config_for("steps=5 pace=0.01")) for _ in range(4)]
    QueueOrder(home).move(runs[3].id, [run.id for run in runs], position=0)
    start_supervisor()
    for run in runs:
        wait_for_state(run, "completed")

    began = sorted(runs, key=lambda run: run.folder.read_state().started)
    assert [run.id for run in began] == [runs[3].id, runs[0].id, runs[1].id, runs[2].id]
    times = [(run.folder.read_state().started, run.folder.read_state().ended) for run in began]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_a_run_waits_for_a_device_that_the_chat_holds_and_requests_its_preemption(store, start_supervisor, home):
    book = LeaseBook(home)
    ourselves = ProcessIdentity.current()
    book.take(["cpu"], LeaseHolder(purpose="chat", title="qwen", process=ourselves, preemptible=True))
    start_supervisor()
    run = store.create(config_for("steps=3"))
    wait_until(lambda: run.folder.read_state().cause == "The CPU is in use for chat (qwen).")

    wait_until(lambda: book.is_preemption_requested(ourselves))
    book.release(ourselves)
    assert wait_for_state(run, "completed").cause == ""


def test_a_stopped_run_resumes_from_its_checkpoint_and_a_complete_one_does_not(store, start_supervisor, home):
    start_supervisor()
    run = store.create(config_for("steps=40 hold=5"))
    wait_for_step(run, 5)
    request_stop(run)
    continue_worker(run)
    stopped = wait_for_state(run, "stopped")

    request_resume(home, run)
    state = wait_for_state(run, "completed")
    history = read_history(run.folder.events)

    assert executions(run) == ["1", "2"]
    assert state.attempt == 2
    assert state.resumable_step is None
    assert history.steps.steps.tolist() == list(range(1, 41))
    assert any(message.text == f"Continued from step {stopped.resumable_step}." for message in history.messages)
    with pytest.raises(RunError, match="is complete"):
        request_resume(home, run)


def test_what_a_dead_worker_left_behind_is_ended_with_it(store, start_supervisor):
    start_supervisor()
    run = store.create(config_for("steps=50 orphan@3"))
    wait_for_state(run, "failed")

    # It was killed before the run was seen to have failed; the system may still be at it.
    wait_until(lambda: not any(_belongs_to(process, run.id) for process in psutil.process_iter()))


def _belongs_to(process, run_id: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("LORATORY_RUN") == run_id
    except psutil.Error:
        return False


def test_a_config_that_cannot_be_read_fails_its_run_and_no_other(store, start_supervisor):
    broken, fine = store.create(config_for("steps=3")), store.create(config_for("steps=3"))
    broken.folder.config.write_text("model: {id: 5, colour: blue}")
    start_supervisor()

    assert "problem" in wait_for_state(broken, "failed").cause
    assert wait_for_state(fine, "completed")


def test_a_suspended_worker_is_reported_at_once_and_continues_unharmed(store, start_supervisor):
    start_supervisor(timeouts=Timeouts())
    run = store.create(config_for("steps=5 hold=2"))
    wait_for_step(run, 2)
    worker = worker_of(run)
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: "suspended (SIGSTOP)" in run.folder.read_state().cause)
    assert run.folder.read_state().state == "running"

    os.kill(worker.pid, signal.SIGCONT)
    continue_worker(run)
    assert wait_for_state(run, "completed", "failed").state == "completed"
    assert run.folder.read_state().cause == ""

"""One run in trouble keeps no other from its turn, and trouble that passes leaves nothing behind."""

import os
import signal
import sys
from typing import Any

import pytest

from loratory.engine.errors import RunError, StorageError
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.processes.liveness import FileLock, ProcessIdentity
from loratory.engine.runs.activity import SilenceLimits
from loratory.engine.runs.control import request_cancel, request_resume, request_stop
from loratory.engine.runs.history.events import FailedData
from loratory.engine.runs.history.log import forget_failures, note_failure, noted_failure
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.job import JobSpec
from loratory.engine.runs.run import RunFolder, RunState
from loratory.engine.supervision.supervisor import SupervisorLoop
from loratory.engine.supervision.worker_monitor import Timeouts
from tests.supervision.fake_runs import config_for, continue_worker, cpu, fake_settings, gpu, wait_for_state, worker_of
from tests.waiting import wait_until


def refuse(*_args: object, **_values: object) -> None:
    raise StorageError("The disk is full.", "Free some space.")


def test_a_device_that_could_not_be_handed_over_is_handed_over_at_the_next_look(store, home, monkeypatch):
    loop, book = SupervisorLoop(home, fake_settings()), LeaseBook(home)
    run = store.create(config_for("steps=50000"))
    with monkeypatch.context() as patch:
        patch.setattr(LeaseBook, "hand_over", refuse)
        loop.tick()
        assert book.holder("cpu").process == ProcessIdentity.current()

    loop.tick()

    holder = book.holder("cpu")
    assert (holder.run_id, holder.process != ProcessIdentity.current()) == (run.id, True)
    request_cancel(run)
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)
    assert book.holder("cpu") is None


def test_a_run_that_ends_gives_back_a_device_that_was_never_handed_over(store, home, monkeypatch):
    monkeypatch.setattr(LeaseBook, "hand_over", refuse)
    loop = SupervisorLoop(home, fake_settings())
    first, second = store.create(config_for("steps=2")), store.create(config_for("steps=2"))

    wait_until(lambda: loop.tick() or second.folder.read_state().is_final)

    assert [run.folder.read_state().state for run in (first, second)] == ["completed", "completed"]
    assert LeaseBook(home).holder("cpu") is None


def test_a_device_is_not_given_on_before_the_end_of_its_run_was_seen(store, home):
    first, second = store.create(config_for("steps=50000")), store.create(config_for("steps=2"))
    is_time = False

    def devices() -> tuple[Device, ...]:
        # Asked for after the workers were looked at, so this one dies unseen and no one living has its device.
        if is_time:
            worker = worker_of(first)
            os.kill(worker.pid, signal.SIGKILL)
            wait_until(lambda: not worker.is_alive())
        return (cpu(),)

    loop = SupervisorLoop(home, fake_settings(devices=devices))
    wait_until(lambda: loop.tick() or read_history(first.folder.events).last_step > 0)
    is_time = True
    loop.tick()
    assert (LeaseBook(home).holder("cpu"), second.folder.read_state().state) == (None, "queued")

    is_time = False
    wait_until(lambda: loop.tick() or second.folder.read_state().is_final)
    ended_state, new_state = first.folder.read_state(), second.folder.read_state()
    assert (ended_state.state, new_state.state) == ("failed", "completed")
    assert ended_state.ended <= new_state.started


def test_other_leases_of_a_server_stay_when_a_run_cannot_be_started(store, home):
    book, ourselves = LeaseBook(home), ProcessIdentity.current()
    book.take(["cuda:0"], LeaseHolder(purpose="measurement", title="one step", process=ourselves, run_id="m"))
    loop = SupervisorLoop(home, fake_settings(command=lambda order: ["/nonexistent/python"]))
    run = store.create(config_for())

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert (run.folder.read_state().state, run.folder.read_state().reason) == ("failed", "not_started")
    assert (book.holder("cpu"), book.holder("cuda:0").run_id) == (None, "m")


@pytest.fixture
def half_taken(store, home):
    """Make a run on two GPUs of which only the first lease was written, and could not be removed either."""
    run = store.create(config_for("steps=3", run={"devices": [0, 1], "launcher": "accelerate"}))
    loop = SupervisorLoop(home, fake_settings(devices=lambda: (gpu(0), gpu(1), cpu())))
    loop.tick(starts_runs=False)
    holder = LeaseHolder(purpose="training", title="a", process=ProcessIdentity.current(), run_id=run.id)
    LeaseBook(home).take(["cuda:0"], holder)
    return run, loop


def test_a_run_does_not_wait_for_a_device_that_is_held_for_itself(half_taken):
    run, loop = half_taken

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert run.folder.read_state().state == "completed"


def test_a_run_that_leaves_the_queue_leaves_nothing_held(half_taken, home):
    run, loop = half_taken
    request_stop(run)
    loop.tick()

    assert run.folder.read_state().cause == "Removed from the queue before it began."
    assert LeaseBook(home).holder("cuda:0") is None


def test_a_run_that_could_neither_be_started_nor_failed_holds_no_device(store, home, monkeypatch):
    run = store.create(config_for("steps=3"))
    loop = SupervisorLoop(home, fake_settings())
    loop.tick(starts_runs=False)
    monkeypatch.setattr(RunFolder, "write_state", refuse)

    loop.tick()

    assert run.folder.read_state().state == "queued"
    assert LeaseBook(home).holder("cpu") is None


def test_a_config_that_breaks_while_it_waits_fails_its_run_and_no_other(store, start_supervisor, home):
    book, ourselves = LeaseBook(home), ProcessIdentity.current()
    book.take(["cpu"], LeaseHolder(purpose="chat", title="qwen", process=ourselves))
    broken, fine = store.create(config_for("steps=3")), store.create(config_for("steps=3"))
    start_supervisor()
    wait_until(lambda: broken.folder.read_state().reason is not None)  # its needs are known
    broken.folder.config.write_text("model: {id: 5, colour: blue}")
    book.release(ourselves)

    assert "problem" in wait_for_state(broken, "failed").cause
    assert wait_for_state(fine, "completed")


@pytest.mark.parametrize("method", ["read_saved_state", "read_state", "write_state", "read_config"])
def test_a_waiting_run_whose_files_are_out_of_reach_keeps_no_other_from_starting(
    store, start_supervisor, monkeypatch, method
):
    odd, fine = store.create(config_for("steps=3")), store.create(config_for("steps=3"))
    for run in (odd, fine):
        run.folder.write_state(RunState(state="queued"))
    original = getattr(RunFolder, method)

    def unless_odd(self, *arguments):
        if self.path == odd.folder.path:
            raise PermissionError(13, "Permission denied")
        return original(self, *arguments)

    monkeypatch.setattr(RunFolder, method, unless_odd)
    start_supervisor()

    wait_until(lambda: original_state(fine) == "completed")


def original_state(run) -> str:
    return RunState.model_validate_json(run.folder.state.read_bytes()).state


def test_a_state_that_cannot_be_read_is_one_clear_error(store, monkeypatch):
    run = store.create(config_for())

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", deny)
    with pytest.raises(StorageError, match=rf"The state of {run.id} cannot be read \(Permission denied\)"):
        run.folder.read_state()


def test_a_supervisor_that_stands_by_outlives_a_lock_that_cannot_be_looked_at(start_supervisor, home, monkeypatch):
    first, second = start_supervisor(), start_supervisor()
    refusals: list[Any] = []
    acquire = FileLock.acquire

    def refuse_once(self, timeout_seconds=None):
        if self is second._lock and not refusals:
            refusals.append(self)
            refuse()
        return acquire(self, timeout_seconds)

    monkeypatch.setattr(FileLock, "acquire", refuse_once)
    wait_until(lambda: bool(refusals))
    first.stop()

    wait_until(lambda: second.role == "supervising")
    assert FileLock(home.server / "supervisor.lock").is_held_by_another()


def test_a_run_that_is_about_to_be_resumed_is_not_deleted(store, home):
    run = store.create(config_for())
    run.folder.write_state(RunState(state="stopped"))
    request_resume(home, run)

    with pytest.raises(RunError, match="about to be resumed and cannot be deleted"):
        store.delete(run.id)
    assert run.folder.config.is_file()


def test_a_run_is_not_taken_up_again_while_it_is_being_deleted(store, home, monkeypatch):
    """A resume that comes in the midst of a deletion finds no run, and leaves no half of one behind."""
    run = store.create(config_for("steps=3"))
    run.folder.write_state(RunState(state="stopped", attempt=1))
    loop, states = SupervisorLoop(home, fake_settings()), []
    loop.tick()
    check = store._refuse_to_delete

    def resume_after_the_check(*arguments):
        check(*arguments)
        request_resume(home, run)
        loop.tick()
        states.append(run.folder.read_state().state)

    monkeypatch.setattr(store, "_refuse_to_delete", resume_after_the_check)
    store.delete(run.id)
    loop.tick()

    assert states == ["stopped"]
    assert list(store.folder.iterdir()) == []


def test_no_worker_claims_a_run_that_is_being_deleted(store, monkeypatch):
    run, refusals = store.create(config_for()), []
    run.folder.write_state(RunState(state="stopped", attempt=1))
    check = store._refuse_to_delete

    def claim_after_the_check(*arguments):
        check(*arguments)
        with pytest.raises(RunError, match="Another process already works on"):
            run.folder.claim()
        refusals.append(run.id)

    monkeypatch.setattr(store, "_refuse_to_delete", claim_after_the_check)
    store.delete(run.id)

    assert refusals == [run.id]
    with pytest.raises(StorageError):
        run.folder.claim()
    assert list(store.folder.iterdir()) == []


def test_a_silence_is_written_down_while_it_lasts(store, start_supervisor):
    limits = SilenceLimits(idle_seconds=600, preparing_idle_seconds=600, busy_seconds=600, unusual_seconds=0.5)
    start_supervisor(timeouts=Timeouts(silence=limits, cancel_seconds=0.5))
    run = store.create(config_for("steps=20 hang@3"))

    wait_until(lambda: _last_step(run) == 3)
    last_time = read_history(run.folder.events).last_time - 0.2  # a silence before it is another one

    def is_silent_since_then() -> bool:
        state = run.folder.read_state()
        return (state.silent_since or 0.0) > last_time and (state.state, state.silence_limit_seconds) == (
            "running",
            600,
        )

    wait_until(is_silent_since_then)
    request_cancel(run)
    assert wait_for_state(run, "stopped", "failed").silent_since is None


def test_the_failure_of_another_process_is_the_cause_where_the_first_has_none(store, start_supervisor):
    run = store.create(config_for("steps=5 hold=3 kill@3"))
    start_supervisor()
    wait_until(lambda: _last_step(run) > 2)
    note_failure(run.folder.path, 1, 1, FailedData(cause="out_of_memory", what="GPU memory ran out.", fix="Halve it."))
    continue_worker(run)

    state = wait_for_state(run, "failed")

    assert (state.cause, state.advice) == ("GPU memory ran out.", "Halve it.")


def test_another_process_that_failed_before_the_first_began_is_the_cause(store, start_supervisor):
    """Torch's launcher then ends the first, which never claims the run."""
    run = store.create(config_for("steps=5"))
    earlier = FailedData(cause="model", what="An earlier attempt's.", fix="None.")
    failure = FailedData(cause="out_of_memory", what="GPU memory ran out.", fix="Halve it.")

    def fail_in_another_process(order: JobSpec) -> list[str]:
        note_failure(order.run.folder.path, 2, order.attempt + 1, earlier)
        note_failure(order.run.folder.path, 1, order.attempt, failure)
        return [sys.executable, "-c", "raise SystemExit(1)"]

    start_supervisor(command=fail_in_another_process)

    state = wait_for_state(run, "failed")

    assert (state.cause, state.advice) == ("GPU memory ran out.", "Halve it.")
    forget_failures(run.folder.path, 1)
    assert noted_failure(run.folder.path, 1) == failure
    forget_failures(run.folder.path, 2)
    assert noted_failure(run.folder.path, 1) is None


def _last_step(run) -> int:
    return read_history(run.folder.events).last_step

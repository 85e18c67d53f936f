import itertools
import os
import signal

import psutil
import pytest

from engine.errors import RunError
from engine.hardware.lease import LeaseBook, LeaseHolder
from engine.processes.identity import ProcessIdentity
from engine.processes.lock import FileLock
from engine.runs.control import request_cancel, request_stop
from engine.runs.followed import Patience
from engine.runs.history import read_history
from engine.runs.provenance import Provenance
from engine.runs.queue import QueueOrder
from engine.runs.requests import request_resume
from engine.runs.run import RunFolder, RunState, WorkerRecord
from engine.runs.store import RunStore
from engine.runs.supervisor import is_supervised, reconcile, supervisor_of
from tests.runs.supervision import GIB, config_for, cpu, fake_settings, wait_for_state, wait_until


@pytest.fixture
def store(home):
    return RunStore(home, "ann")


def executions(run) -> list[str]:
    try:
        return (run.folder.path / "executions").read_text().split()
    except FileNotFoundError:
        return []


def worker_of(run) -> WorkerRecord:
    wait_until(lambda: run.folder.read_worker() is not None)
    worker = run.folder.read_worker()
    assert worker is not None
    return worker


def wait_for_step(run, step: int) -> None:
    wait_until(lambda: read_history(run.folder.events).last_step >= step)


def test_a_run_goes_from_the_queue_to_completed(store, start_supervisor, home):
    start_supervisor()
    run = store.create(config_for("steps=6 checkpoint=3"))
    state = wait_for_state(run, "completed", "failed")

    assert (state.state, state.cause, state.attempt, state.device) == ("completed", "", 1, "cpu")
    assert state.started is not None
    assert state.ended is not None
    assert state.started <= state.ended
    assert read_history(run.folder.events).steps.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert executions(run) == ["1"]
    assert LeaseBook(home).holder("cpu") is None


def test_its_states_come_in_order(store, start_supervisor, monkeypatch):
    seen: list[str] = []
    original = RunFolder.write_state

    def remember(self, state):
        seen.append(state.state)
        original(self, state)

    monkeypatch.setattr(RunFolder, "write_state", remember)
    run = store.create(config_for("steps=10"))
    start_supervisor()
    wait_for_state(run, "completed")

    assert list(dict.fromkeys(seen)) == ["queued", "starting", "running", "completed"]


def test_while_it_runs_it_holds_its_device_under_the_workers_name(store, start_supervisor, home):
    start_supervisor()
    run = store.create(config_for("steps=200"))
    wait_for_step(run, 1)

    holder = LeaseBook(home).holder("cpu")
    assert holder is not None
    assert (holder.purpose, holder.run_id, holder.process.pid) == ("training", run.id, worker_of(run).pid)
    request_cancel(run)
    wait_for_state(run, "stopped")


def test_stop_saves_ends_and_leaves_no_process(store, start_supervisor):
    start_supervisor()
    run = store.create(config_for("steps=500"))
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
    run = store.create(config_for("steps=5000 deaf@9999 checkpoint=2"))
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
    wait_until(lambda: run.folder.read_state().cause.startswith("Waits for memory"))
    request_stop(run)
    state = wait_for_state(run, "stopped")

    assert state.cause == "Taken out of the queue before it began."
    assert executions(run) == []


def test_one_device_executes_one_run_after_the_other_in_the_order_of_the_queue(store, start_supervisor, home):
    runs = [store.create(config_for("steps=5 pace=0.01")) for _ in range(4)]
    QueueOrder(home).move(runs[3].id, [run.id for run in runs], place=0)
    start_supervisor()
    for run in runs:
        wait_for_state(run, "completed")

    began = sorted(runs, key=lambda run: run.folder.read_state().started)
    assert [run.id for run in began] == [runs[3].id, runs[0].id, runs[1].id, runs[2].id]
    times = [(run.folder.read_state().started, run.folder.read_state().ended) for run in began]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_a_run_waits_for_a_device_that_the_chat_holds_and_the_chat_is_asked_to_give_way(store, start_supervisor, home):
    book = LeaseBook(home)
    ourselves = ProcessIdentity.current()
    book.take(["cpu"], LeaseHolder(purpose="chat", title="qwen", process=ourselves, gives_way=True))
    start_supervisor()
    run = store.create(config_for("steps=3"))
    wait_until(lambda: run.folder.read_state().cause == "Waits: The CPU is in use for chat (qwen).")

    wait_until(lambda: book.is_asked_to_give_way(ourselves))
    book.release(ourselves)
    assert wait_for_state(run, "completed").cause == ""


def test_a_stopped_run_resumes_from_its_checkpoint_and_a_complete_one_does_not(store, start_supervisor, home):
    start_supervisor()
    run = store.create(config_for("steps=40"))
    wait_for_step(run, 5)
    request_stop(run)
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

    left = [process.pid for process in psutil.process_iter() if _belongs_to(process, run.id)]
    assert left == []


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


def test_a_run_that_cannot_even_be_looked_at_keeps_no_other_from_starting(store, start_supervisor, monkeypatch):
    odd, fine = store.create(config_for("steps=3")), store.create(config_for("steps=3"))
    original = RunFolder.read_saved_state

    def refuse(self):
        if self.path == odd.folder.path:
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(RunFolder, "read_saved_state", refuse)
    start_supervisor()

    assert wait_for_state(fine, "completed")


def test_a_worker_that_cannot_be_started_fails_its_run(store, start_supervisor):
    start_supervisor(command=lambda order: ["/nonexistent/python", "worker"])
    run = store.create(config_for())

    assert "could not be started" in wait_for_state(run, "failed").cause


def test_the_second_supervisor_of_a_home_refuses_says_so_and_takes_over(store, start_supervisor, home):
    first, second = start_supervisor(), start_supervisor()
    wait_until(lambda: supervisor_of(home) is not None)

    assert (first.role, second.role) == ("supervising", "standing_by")
    assert f"(pid {os.getpid()}) already supervises" in second.explain_role()
    first.stop()
    wait_until(lambda: second.role == "supervising")
    run = store.create(config_for("steps=3"))
    wait_for_state(run, "completed")


def test_a_supervisor_that_stops_leaves_its_workers_alone_and_the_next_one_finds_them(store, start_supervisor):
    first = start_supervisor()
    run = store.create(config_for("steps=60"))
    wait_for_step(run, 3)
    worker = worker_of(run)
    first.stop()
    assert worker.is_alive()

    start_supervisor()
    state = wait_for_state(run, "completed", "failed", "interrupted")

    assert state.state == "completed"
    assert executions(run) == ["1"]
    assert worker_of(run).pid == worker.pid


def test_a_run_whose_worker_ended_while_nobody_watched_is_judged_by_its_own_words(store, start_supervisor):
    first = start_supervisor()
    run, lost = store.create(config_for("steps=20")), store.create(config_for("steps=20 kill@8"))
    wait_for_step(run, 2)
    first.stop()
    wait_until(lambda: not worker_of(run).is_alive())
    start_supervisor()
    assert wait_for_state(run, "completed", "interrupted").state == "completed"
    wait_for_state(lost, "failed", "interrupted")


def test_a_machine_that_restarted_is_known_by_its_boot_id(store, start_supervisor, home):
    run = store.create(config_for("steps=20 checkpoint=5"))
    _leave_as_after_a_restart(run)
    start_supervisor()
    state = wait_for_state(run, "interrupted")

    assert state.cause == "The machine was restarted after step 0."
    request_resume(home, run)
    assert wait_for_state(run, "completed").attempt == 2


def test_a_run_that_asked_for_it_resumes_by_itself_after_a_restart(store, start_supervisor):
    run = store.create(config_for("steps=5", run={"resume_after_restart": True}))
    _leave_as_after_a_restart(run)
    start_supervisor()

    assert wait_for_state(run, "completed").attempt == 2


def _leave_as_after_a_restart(run) -> None:
    """The worker's pid is alive again, as another process, and the boot is another one."""
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    before = ProcessIdentity.current().model_copy(update={"boot_id": "the boot before"})
    record = WorkerRecord(**before.model_dump(), process_group=os.getpgid(0), attempt=1)
    run.folder.process.write_text(record.model_dump_json())


def test_a_reused_pid_is_not_taken_for_the_worker_and_not_killed(store, start_supervisor):
    run = store.create(config_for("steps=5"))
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    earlier = ProcessIdentity.current().model_copy(update={"start_time": 1.0})
    record = WorkerRecord(**earlier.model_dump(), process_group=os.getpgid(0), attempt=1)
    run.folder.process.write_text(record.model_dump_json())
    start_supervisor()

    assert "while nobody watched" in wait_for_state(run, "interrupted").cause


def test_state_files_that_a_power_cut_tore_are_told_again_by_log_and_lock(store, start_supervisor):
    first = start_supervisor()
    complete, living = store.create(config_for("steps=3")), store.create(config_for("steps=60"))
    wait_for_state(complete, "completed")
    wait_for_step(living, 2)
    first.stop()
    never_begun = store.create(config_for("steps=4"))
    for run, torn in ((complete, b""), (living, b'{"state": "run'), (never_begun, b"\0\0\0\0")):
        run.folder.state.write_bytes(torn)
    start_supervisor()

    assert wait_for_state(complete, "completed", "interrupted").state == "completed"
    assert wait_for_state(living, "completed", "interrupted").state == "completed"
    assert wait_for_state(never_begun, "completed").state == "completed"
    assert executions(complete) == executions(living) == ["1"]


def test_a_worker_that_a_dead_supervisor_had_only_meant_to_start_is_started_once(store, start_supervisor):
    run = store.create(config_for("steps=3"))
    run.folder.write_state(RunState(state="starting", attempt=1, started=1.0, device="cpu"))
    start_supervisor(patience=Patience(claim_seconds=0.3))

    assert wait_for_state(run, "completed").attempt == 2
    assert executions(run) == ["2"]


def test_a_command_that_looks_once_brings_states_up_to_date_and_starts_nothing(store, home, start_supervisor):
    first = start_supervisor()
    run = store.create(config_for("steps=10"))
    wait_for_step(run, 1)
    first.stop()
    wait_until(lambda: not worker_of(run).is_alive())
    waiting = store.create(config_for("steps=2"))
    assert run.folder.read_state().state in ("starting", "running")

    reconcile(home, fake_settings())

    assert run.folder.read_state().state == "completed"
    assert waiting.folder.read_state().state == "queued"
    assert not is_supervised(home)


def test_a_command_leaves_states_to_the_server_that_supervises(store, home):
    lock = FileLock(home.server / "supervisor.lock")
    assert lock.acquire(timeout_seconds=0)
    run = store.create(config_for())

    reconcile(home, fake_settings())

    assert run.folder.read_saved_state() is None
    assert is_supervised(home)
    lock.release()


def test_a_suspended_worker_is_said_at_once_and_goes_on_unharmed(store, start_supervisor):
    start_supervisor()
    run = store.create(config_for("steps=60"))
    wait_for_step(run, 2)
    worker = worker_of(run)
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: "suspended (SIGSTOP)" in run.folder.read_state().cause)
    assert run.folder.read_state().state == "running"

    os.kill(worker.pid, signal.SIGCONT)
    assert wait_for_state(run, "completed", "failed").state == "completed"
    assert run.folder.read_state().cause == ""

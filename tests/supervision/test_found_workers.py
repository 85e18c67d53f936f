"""Workers that a person or a scheduler started, next to a server that looks after the same run."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from loratory.engine.errors import RunError
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.places import make_executors
from loratory.engine.places.local import LocalContext
from loratory.engine.places.slurm.commands import JobLine
from loratory.engine.places.slurm.job import SlurmExecutor
from loratory.engine.places.slurm.place import ClusterPlace, JobResources, SlurmRecord
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.control import request_cancel, request_resume
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.job import JobSpec
from loratory.engine.runs.run import Run, RunState
from loratory.engine.supervision.queue import WaitingRun
from loratory.engine.supervision.scheduler import Scheduler
from loratory.engine.supervision.supervisor import SupervisorLoop, reconcile
from tests.event_log import write_log
from tests.slurm.fake_slurm import FakeSlurm
from tests.supervision.fake_runs import (
    config_for,
    continue_worker,
    cpu,
    executions,
    fake_settings,
    fake_worker_command,
    wait_for_state,
    wait_for_step,
)
from tests.waiting import wait_until


@pytest.fixture
def by_hand() -> Iterator[object]:
    """Return a function that starts workers of a run without the number of their attempt."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(run: Run) -> subprocess.Popen[bytes]:
        order = JobSpec(run, run.folder.read_config(), (cpu(),), 0)
        processes.append(subprocess.Popen(fake_worker_command(order)))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("last_word", [True, False], ids=["they spoke", "the last said nothing"])
def test_an_attempt_after_some_by_hand_has_a_number_of_its_own(store, home, last_word):
    run = store.create(config_for("steps=3"))
    run.folder.write_state(RunState(state="failed", attempt=1, started=1.0))
    for attempt in (1, 2, 3) if last_word else (1, 2):
        write_log(run.folder.events, StatusData(phase="stopped", message="Stopped."), attempt=attempt)
    if not last_word:
        run.folder.claim().lock.release()
    request_resume(home, run)
    loop = SupervisorLoop(home, fake_settings())

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    state = run.folder.read_state()
    assert (state.state, state.attempt, executions(run)) == ("completed", 4, ["4"])
    assert read_history(run.folder.events).status.phase == "finished"


def test_a_waiting_run_that_someone_executes_is_followed_and_not_started(store, home, by_hand):
    run = store.create(config_for("steps=50000"))
    reconcile(home, fake_settings())
    worker = by_hand(run)
    wait_for_step(run, 2)
    loop = SupervisorLoop(home, fake_settings())

    wait_until(lambda: loop.tick() or run.folder.read_state().state == "running")

    state, holder = run.folder.read_state(), LeaseBook(home).holder("cpu")
    assert (state.attempt, state.device, holder.process) == (1, "cpu", ProcessIdentity.from_pid(worker.pid))
    request_cancel(run)
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)
    assert run.folder.read_state().cause.startswith("Cancelled after step")
    assert executions(run) == ["1"]
    assert LeaseBook(home).holder("cpu") is None


@pytest.fixture
def starts() -> list[subprocess.Popen[bytes]]:
    return []


@pytest.fixture
def overtaken_loop(home, by_hand, starts) -> SupervisorLoop:
    """Return the loop of a supervisor whose workers are always too late: another one has started in `starts`."""

    def overtaken(order: JobSpec) -> list[str]:
        starts.append(by_hand(order.run))
        wait_for_step(order.run, 1)
        return fake_worker_command(order)

    return SupervisorLoop(home, fake_settings(command=overtaken))


@pytest.mark.exhaustive
@pytest.mark.parametrize("steps", [2, 60, 200], ids=["and ends before ours came", "soon", "later"])
def test_a_worker_that_comes_at_the_very_moment_of_a_start_is_followed_too(store, overtaken_loop, starts, steps):
    run, loop = store.create(config_for(f"steps={steps}")), overtaken_loop
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert run.folder.read_state().state == "completed"
    assert (len(starts), executions(run)) == (1, ["1"])


@pytest.mark.exhaustive
def test_a_worker_that_was_quicker_may_end_at_any_moment(store, home, overtaken_loop, starts, monkeypatch):
    run, loop, needs = store.create(config_for("steps=100")), overtaken_loop, Scheduler.needs

    def once_it_has_ended(scheduler: Scheduler, run_id: str) -> WaitingRun | None:
        if starts:  # between the end of our worker and the next look at the queue
            starts[0].wait()
        return needs(scheduler, run_id)

    monkeypatch.setattr(Scheduler, "needs", once_it_has_ended)
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert run.folder.read_state().state == "completed"
    assert (len(starts), executions(run)) == (1, ["1"])
    assert LeaseBook(home).holder("cpu") is None


def test_a_worker_that_has_not_yet_said_who_it_is_keeps_its_run_waiting(store, home):
    run = store.create(config_for("steps=3"))
    loop, lock = SupervisorLoop(home, fake_settings()), run.folder.worker_lock()
    assert lock.acquire(timeout_seconds=0)
    loop.tick()
    loop.tick()
    assert (run.folder.read_state().state, executions(run)) == ("queued", [])

    lock.release()
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)
    assert run.folder.read_state().state == "completed"


@pytest.mark.exhaustive
@pytest.mark.parametrize("is_known", [True, False], ids=["seen to end", "ended before this server"])
@pytest.mark.parametrize("ends_unseen", [True, False], ids=["and ended unseen", "and works"])
def test_a_run_that_a_scheduler_starts_again_is_followed_to_its_end(
    store, home, by_hand, monkeypatch, is_known, ends_unseen
):
    monkeypatch.setattr("loratory.engine.supervision.states._LOOK_AGAIN_SECONDS", 0.0)
    run = store.create(config_for("steps=5" if ends_unseen else "steps=5 hold=2"))
    run.folder.write_state(RunState(state="stopped", reason="sigterm", attempt=1, started=1.0))
    write_log(run.folder.events, StatusData(phase="stopped", stopped_by="sigterm"))
    loop = SupervisorLoop(home, fake_settings())
    if is_known:
        loop.tick()
    worker = by_hand(run)
    if ends_unseen:
        worker.wait()
    else:
        wait_for_step(run, 2)
        wait_until(lambda: loop.tick() or run.folder.read_state().state == "running")
        continue_worker(run)

    wait_until(lambda: loop.tick() or (run.folder.read_state().is_final and run.folder.read_state().attempt == 2))

    assert (run.folder.read_state().state, executions(run)) == ("completed", ["2"])


@pytest.fixture
def given_up(store, home, by_hand, monkeypatch):
    """Return a run whose job was given up although its worker trains, and a supervisor's loop that sees neither."""
    monkeypatch.setattr("loratory.engine.supervision.states._LOOK_AGAIN_SECONDS", 0.0)
    run, slurm = store.create(config_for("steps=5 hold=2", run={"where": "slurm"})), FakeSlurm()
    SlurmRecord(
        attempt=1, resources=JobResources(), warning_seconds=1, job_id="100", is_released=True, is_over=True
    ).save(run.folder)
    state = RunState(
        state="interrupted", reason="unknown", attempt=1, executor="slurm", job_id="100", ended=time.time()
    )
    run.folder.write_state(state)

    def executors(context):
        place = ClusterPlace(poll_seconds=0.1, offline=False)
        return {**make_executors(context), "slurm": SlurmExecutor(home, lambda: place, slurm)}

    loop = SupervisorLoop(home, fake_settings(executors=executors))
    loop.tick()
    assert run.folder.read_state() == state
    by_hand(run)
    wait_for_step(run, 2)
    yield run, loop, slurm
    loop.close()


def test_a_job_that_was_given_up_is_followed_again_once_its_worker_writes(given_up, home):
    run, loop, _ = given_up
    with pytest.raises(RunError, match="is interrupted, and its worker still runs"):
        request_resume(home, run)
    wait_until(lambda: loop.tick() or run.folder.read_state().state == "running")
    assert (run.folder.read_state().job_id, run.folder.read_state().ended) == ("100", None)

    continue_worker(run)
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert (run.folder.read_state().state, executions(run)) == ("completed", ["1"])


def test_the_result_of_a_job_that_was_given_up_is_adopted_by_a_resume(given_up, home):
    run, loop, slurm = given_up
    continue_worker(run)
    wait_until(lambda: not run.folder.has_living_worker())
    request_resume(home, run)

    wait_until(lambda: loop.tick() or run.folder.read_state().state == "completed")

    assert (executions(run), slurm.scripts) == (["1"], [])


def test_a_cancel_of_a_job_that_was_given_up_reaches_slurm(given_up):
    run, loop, slurm = given_up
    wait_until(lambda: loop.tick() or run.folder.read_state().state == "running")
    slurm.jobs["100"] = JobLine("100", "RUNNING", "None", "")

    request_cancel(run)

    wait_until(lambda: loop.tick() or bool({"kill 100", "cancel 100"} & set(slurm.commands)))
    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)
    assert run.folder.read_state().reason == "cancelled"


def test_a_worker_that_finds_its_run_finished_is_not_a_failure(store, start_supervisor):
    run = store.create(config_for("exit3@1"))
    run.folder.write_state(RunState(state="queued", attempt=1))
    write_log(run.folder.events, StatusData(phase="finished", message="Finished."))
    run.folder.adapter.mkdir()

    start_supervisor(command=lambda _: [sys.executable, "-c", "raise SystemExit(3)"])

    assert wait_for_state(run, "completed", "failed").state == "completed"


def test_a_run_without_the_executor_it_was_filed_for_is_started_by_no_other(home, store):
    jobs_run, ours = store.create(config_for("steps=1", run={"where": "jobs"})), store.create(config_for("steps=2"))
    settings = fake_settings()
    here = {
        name: kind
        for name, kind in settings.executors(LocalContext(LeaseBook(home), lambda *_: None, 600.0)).items()
        if name != "jobs"
    }
    loop = SupervisorLoop(home, fake_settings(executors=lambda _: here))

    wait_until(lambda: loop.tick() or ours.folder.read_state().is_final)

    assert (jobs_run.folder.read_state().state, executions(jobs_run)) == ("queued", [])

"""A server that finds a state file lost takes a run that has begun through its end again; no run is started twice."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.places.local import LocalJob
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.control import request_cancel, request_stop
from loratory.engine.runs.run import Run, RunFolder
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import SupervisorLoop
from tests.supervision.fake_runs import config_for, executions, fake_settings, wait_for_step
from tests.waiting import wait_until


def refuse(_: object) -> None:
    raise StorageError("The state cannot be read (Permission denied).", "Check the permissions of the run's folder.")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:20]),
}
LOST: dict[str, tuple[str, ...]] = {
    "the state alone": (),
    "the worker's record as well": ("process.json",),
}


@pytest.fixture(params=DAMAGE)
def damage(request) -> Callable[[Run], object]:
    return lambda run: DAMAGE[request.param](run.folder.state)


@pytest.fixture(params=LOST)
def lose(request) -> Callable[[Run], None]:
    """Damages the state and loses other files with it."""

    def lose(run: Run) -> None:
        run.folder.state.write_bytes(b"")
        for name in LOST[request.param]:
            (run.folder.path / name).unlink()

    return lose


@pytest.fixture
def loop(home, monkeypatch) -> SupervisorLoop:
    # Whatever holds a worker up meanwhile: its state would differ by that alone.
    monkeypatch.setattr(ProcessIdentity, "is_suspended", lambda _: False)
    return SupervisorLoop(home, fake_settings())


def until(loop: SupervisorLoop, condition: Callable[[], bool]) -> None:
    wait_until(lambda: loop.tick() or condition())


def working(store: RunStore, loop: SupervisorLoop) -> Run:
    run = store.create(config_for("steps=50000 checkpoint=2"))
    until(loop, lambda: run.folder.read_state().state == "running")
    wait_for_step(run, 3)
    return run


def ends_once(loop: SupervisorLoop, run: Run) -> None:
    request_cancel(run)
    until(loop, lambda: run.folder.read_state().is_final)
    assert run.folder.read_state().state == "stopped"
    assert executions(run) == ["1"]


def test_a_server_that_starts_rebuilds_the_state_of_a_run_at_work(store, home, loop, damage):
    run = working(store, loop)
    before = run.folder.read_saved_state()
    damage(run)
    later = SupervisorLoop(home, fake_settings())

    later.tick()

    after = run.folder.read_saved_state()
    assert (after.state, after.attempt, after.device) == (before.state, before.attempt, before.device)
    ends_once(later, run)


def test_a_supervisor_looks_less_often_while_all_that_there_is_is_a_run_at_work(store, home, loop, monkeypatch):
    assert loop.pause_seconds() == 0.05
    run = working(store, loop)
    with monkeypatch.context() as later:
        later.setattr(LocalJob, "poll_seconds", lambda _: 2.0)
        assert loop.pause_seconds() == 2.0
        other = store.create(config_for())
        loop._scheduler.poll()
        assert list(loop._scheduler.waiting) == [other.id]
        assert loop.pause_seconds() == 0.05

    request_cancel(other)
    ends_once(loop, run)
    assert loop.pause_seconds() == 0.05


def test_a_state_that_cannot_be_read_is_reported_and_its_run_left_alone(store, home, loop, monkeypatch, caplog):
    run = working(store, loop)
    later = SupervisorLoop(home, fake_settings())
    with monkeypatch.context() as failing:
        failing.setattr(RunFolder, "read_saved_state", refuse)
        later.tick()
    assert f"{run.id} cannot be supervised" in caplog.text

    ends_once(later, run)


def test_an_active_run_whose_files_are_lost_never_waits_and_never_starts_twice(store, home, loop, lose):
    run = working(store, loop)
    lose(run)

    assert run.folder.read_state().state == "running", "without any supervisor"
    for _ in range(3):
        loop.tick()
        assert run.folder.read_state().state == "running"
    ends_once(loop, run)


def test_a_server_that_starts_follows_a_run_at_work_whose_files_are_lost(store, home, loop, lose):
    run = working(store, loop)
    lose(run)
    later = SupervisorLoop(home, fake_settings())

    later.tick()

    state = run.folder.read_saved_state()
    assert (state.state, state.attempt, state.device) == ("running", 1, "cpu")
    ends_once(later, run)
    assert LeaseBook(home).holder("cpu") is None


@pytest.mark.parametrize(
    ("text", "ask", "state"),
    [("steps=3", None, "completed"), ("steps=90000", request_stop, "stopped"), ("steps=9 fail@2", None, "failed")],
)
def test_the_state_of_a_run_that_has_ended_is_rebuilt(store, home, loop, text, ask, state):
    run = store.create(config_for(text))
    until(loop, lambda: run.folder.read_state().state in ("running", "completed", "failed"))
    if ask is not None:
        ask(run)
    until(loop, lambda: run.folder.read_state().is_final)
    before = run.folder.read_saved_state()
    run.folder.state.write_bytes(b"")

    later = SupervisorLoop(home, fake_settings())
    until(later, lambda: (run.folder.read_saved_state() or before) != before and run.folder.read_saved_state().is_final)

    after = run.folder.read_saved_state()
    assert (after.state, after.reason, after.attempt) == (before.state, before.reason, before.attempt)
    assert executions(run) == ["1"]


@pytest.mark.parametrize("left", ["adapter", "checkpoints", "worker.log"])
def test_a_run_of_which_only_results_are_left_is_not_trained_again(store, home, loop, left):
    run = store.create(config_for("steps=4 checkpoint=2"))
    until(loop, lambda: run.folder.read_state().is_final)
    for path in list(run.folder.path.iterdir()):
        if path.name not in (left, "config.yaml", "executions"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    later = SupervisorLoop(home, fake_settings())

    until(later, lambda: run.folder.read_saved_state() is not None and run.folder.read_saved_state().is_final)

    assert run.folder.read_saved_state().state == "interrupted"
    assert executions(run) == ["1"]


def test_a_waiting_run_keeps_its_place_when_its_state_is_damaged(store, home):
    busy = SupervisorLoop(home, fake_settings(devices=lambda: ()))
    run = store.create(config_for("steps=3"))
    busy.tick()
    run.folder.state.write_bytes(b"")

    busy.tick()

    assert (run.folder.read_state().state, run.folder.read_state().attempt) == ("queued", 0)
    free = SupervisorLoop(home, fake_settings())
    until(free, lambda: run.folder.read_state().is_final)
    assert executions(run) == ["1"]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["deleted", "emptied"])
def test_the_lease_of_a_run_at_work_comes_back(store, home, loop, spoil):
    run = working(store, loop)
    holder = LeaseBook(home).holder("cpu")
    assert (holder.purpose, holder.process.pid) == ("training", run.folder.read_worker().pid)
    (lease,) = (home.server / "leases").glob("*/cpu.json")
    spoil(lease)
    assert LeaseBook(home).holder("cpu") is None

    loop.tick()

    again = LeaseBook(home).holder("cpu")
    assert (again.process, again.run_id) == (holder.process, run.id)
    ends_once(loop, run)

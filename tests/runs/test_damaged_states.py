"""A server that finds a state file deleted or damaged rebuilds it from what there is, and no run is started twice."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StorageError
from engine.hardware.lease import LeaseBook
from engine.processes.liveness import ProcessIdentity
from engine.runs.control import request_cancel, request_resume, request_stop
from engine.runs.history.log import read_events
from engine.runs.history.run_history import HistoryReader, read_history
from engine.runs.run import Run, RunFolder
from engine.runs.store import RunStore
from engine.runs.summary import summarize
from engine.runs.supervision.supervisor import SupervisorLoop
from tests.runs.supervision import config_for, executions, fake_settings, let_go, wait_for_step, wait_until
from ui.backend.run_reader import RunReader
from ui.views.run_view import render_warnings


def refuse(_: object) -> None:
    raise StorageError("The state cannot be read (Permission denied).", "Check the permissions of the run's folder.")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "zeros": lambda path: path.write_bytes(b"\0" * 300),
    "wrong schema": lambda path: path.write_text('{"state": "dancing", "attempt": []}'),
    "a list": lambda path: path.write_text("[1, 2]"),
    "long": lambda path: path.write_bytes(b'{"state": "' + b"x" * 3_000_000),
    "a dangling link": dangle,
}
LOST: dict[str, tuple[str, ...]] = {
    "the state alone": (),
    "the log as well": ("events.jsonl",),
    "the worker's record as well": ("process.json",),
    "both": ("events.jsonl", "process.json"),
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


@pytest.mark.exhaustive(quick=2)
def test_a_server_that_starts_rebuilds_the_state_of_a_run_at_work(store, home, loop, damage):
    run = working(store, loop)
    before = run.folder.read_saved_state()
    damage(run)
    later = SupervisorLoop(home, fake_settings())

    later.tick()

    after = run.folder.read_saved_state()
    assert (after.state, after.attempt, after.device) == (before.state, before.attempt, before.device)
    assert after.notice.startswith("state.json was lost or damaged")
    ends_once(later, run)


@pytest.mark.parametrize("is_folder", [True, False], ids=["a folder", "unreadable"])
def test_a_state_that_cannot_be_read_or_replaced_is_reported_and_its_run_left_alone(
    store, home, loop, monkeypatch, caplog, is_folder
):
    run = working(store, loop)
    kept = run.folder.state.read_bytes()
    later = SupervisorLoop(home, fake_settings())
    with monkeypatch.context() as failing:
        if is_folder:
            make_folder(run.folder.state)
        else:
            failing.setattr(RunFolder, "read_saved_state", refuse)
        later.tick()
    assert f"{run.id} cannot be supervised" in caplog.text
    if is_folder:
        shutil.rmtree(run.folder.state)
        run.folder.state.write_bytes(kept)

    ends_once(later, run)


def test_a_run_at_work_whose_files_are_lost_is_never_shown_as_waiting_and_never_started_twice(store, home, loop, lose):
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
    assert "rebuilt from" in state.notice
    ends_once(later, run)
    assert LeaseBook(home).holder("cpu") is None


def test_a_log_that_was_lost_comes_back_and_shows_how_the_run_ended(store, home, loop):
    run = store.create(config_for("steps=60 hold=3"))
    until(loop, lambda: run.folder.read_state().state == "running")
    reader = HistoryReader(run.folder.events)
    wait_for_step(run, 3)
    reader.update()
    run.folder.events.unlink()
    let_go(run)

    until(loop, lambda: run.folder.read_state().is_final)

    assert run.folder.read_state().state == "completed"
    assert reader.update().last_step == read_history(run.folder.events).last_step == 60
    numbers = [event.seq for event in read_events(run.folder.events).events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize(
    ("words", "ask", "state"),
    [("steps=3", None, "completed"), ("steps=90000", request_stop, "stopped"), ("steps=9 fail@2", None, "failed")],
)
def test_the_state_of_a_run_that_has_ended_is_rebuilt(store, home, loop, words, ask, state):
    run = store.create(config_for(words))
    until(loop, lambda: run.folder.read_state().state in ("running", "completed", "failed"))
    if ask is not None:
        ask(run)
    until(loop, lambda: run.folder.read_state().is_final)
    before = run.folder.read_saved_state()
    run.folder.state.write_bytes(b"")

    assert run.folder.read_state().state == state, "without any supervisor"
    later = SupervisorLoop(home, fake_settings())
    until(later, lambda: (run.folder.read_saved_state() or before).notice != "")
    until(later, lambda: run.folder.read_saved_state().is_final)

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


def test_a_resumed_run_that_waits_is_shown_as_waiting_again_when_its_reason_is_saved(store, home, loop, monkeypatch):
    run = working(store, loop)
    request_stop(run)
    until(loop, lambda: run.folder.read_state().is_final)
    busy = SupervisorLoop(home, fake_settings(devices=lambda: ()))
    request_resume(home, run)
    busy.tick()
    run.folder.state.write_bytes(b"")
    monkeypatch.setattr("engine.runs.supervision.scheduler._EXPLAIN_SECONDS", 0.0)

    busy.tick()

    state = run.folder.read_saved_state()
    assert (state.state, state.attempt, state.reason) == ("queued", 1, "device_missing")


def test_a_person_reads_one_sentence_about_it_until_the_next_attempt(store, home, loop):
    run = working(store, loop)
    run.folder.state.write_bytes(b"{")
    later = SupervisorLoop(home, fake_settings())
    later.tick()

    snapshot = RunReader(store).observe(run.id)

    assert render_warnings(snapshot).count("state.json was lost or damaged") == 1
    assert summarize(run).notice == snapshot.state.notice
    ends_once(later, run)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["deleted", "emptied"])
def test_the_lease_of_a_run_at_work_comes_back(store, home, loop, spoil):
    run = working(store, loop)
    holder = LeaseBook(home).holder("cpu")
    (lease,) = (home.server / "leases").glob("*/cpu.json")
    spoil(lease)
    assert LeaseBook(home).holder("cpu") is None

    loop.tick()

    again = LeaseBook(home).holder("cpu")
    assert (again.process, again.run_id) == (holder.process, run.id)
    ends_once(loop, run)

"""One owner's folder that cannot be looked at, like a mount that is gone, and the runs of everybody else."""

import shutil
from pathlib import Path

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.runs.control import request_cancel, request_resume, resume_is_requested
from loratory.engine.runs.run import Run, RunState
from loratory.engine.runs.store import RunStore, list_owners
from loratory.engine.supervision.supervisor import SupervisorLoop
from tests.supervision.fake_runs import config_for, continue_worker, cpu, executions, fake_settings, wait_for_step
from tests.waiting import wait_until


@pytest.fixture
def theirs(home) -> Run:
    """Return a run of a person whose folder is within reach."""
    return RunStore(home, "bob").create(config_for("steps=50000"))


def take_away(store: RunStore) -> Path:
    """Nothing below the folder can be looked at any more; returns where it went."""
    away = store.home.root / "away"
    shutil.move(store.folder, away)
    store.folder.symlink_to(store.folder)  # each look ends with ELOOP, as those at a lost mount do with ENOTCONN
    return away


def bring_back(store: RunStore, away: Path) -> None:
    store.folder.unlink(missing_ok=True)
    shutil.move(away, store.folder)


@pytest.mark.parametrize("state", ["queued", "running", "stopped"])
def test_a_folder_out_of_reach_stops_the_supervision_of_no_one_else(store, home, theirs, state):
    run = store.create(config_for("steps=3"))
    run.folder.write_state(RunState(state=state, attempt=0 if state == "queued" else 1, device="cpu"))
    can_start: list[bool] = []
    devices = fake_settings().devices
    loop = SupervisorLoop(home, fake_settings(devices=lambda: devices() if can_start else ()))
    loop.tick()
    assert theirs.folder.read_state().state == "queued"
    take_away(store)
    can_start.append(True)
    request_cancel(theirs)

    loop.tick()

    assert list_owners(home) == ["ann", "bob"]
    assert theirs.folder.read_state().state == "stopped"


def test_its_runs_are_looked_after_when_it_comes_back(store, home, monkeypatch):
    monkeypatch.setattr("loratory.engine.supervision.states._LOOK_AGAIN_SECONDS", 0.0)
    run = store.create(config_for("steps=3"))
    away = take_away(store)
    loop = SupervisorLoop(home, fake_settings())
    loop.tick()
    bring_back(store, away)

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert run.folder.read_state().state == "completed"


@pytest.mark.parametrize("has_begun", [False, True], ids=["while its run waits", "while its run is at work"])
def test_a_folder_that_goes_and_comes_back_loses_no_run(store, home, monkeypatch, has_begun):
    monkeypatch.setattr("loratory.engine.supervision.states._LOOK_AGAIN_SECONDS", 0.0)
    # It holds while the folder is away, so it writes nothing then.
    run, away = store.create(config_for("steps=6 hold=2")), home.root / "away"
    devices = [cpu()] if has_begun else []
    loop = SupervisorLoop(home, fake_settings(devices=lambda: devices))
    wait_until(lambda: loop.tick() or run.folder.read_state().state == ("running" if has_begun else "queued"))
    if has_begun:
        wait_for_step(run, 2)
    shutil.move(store.folder, away)
    devices[:] = [cpu()]
    loop.tick()
    loop.tick()
    shutil.move(away, store.folder)
    continue_worker(run)

    wait_until(lambda: loop.tick() or run.folder.read_state().is_final)

    assert (run.folder.read_state().state, executions(run)) == ("completed", ["1"])


@pytest.fixture
def resume_run(store, home) -> Run:
    """Return a run that is requested to resume."""
    run = store.create(config_for("steps=3"))
    run.folder.write_state(RunState(state="stopped", attempt=1))
    request_resume(home, run)
    return run


@pytest.mark.parametrize("is_known", [True, False], ids=["since it was seen", "from the beginning"])
@pytest.mark.parametrize("is_there", [True, False], ids=["it cannot be looked into", "it is not there"])
def test_a_request_to_resume_is_kept_while_the_folder_is_out_of_reach(store, home, resume_run, is_there, is_known):
    loop = SupervisorLoop(home, fake_settings(devices=lambda: ()))
    if is_known:
        loop.tick()
        resume_run.folder.write_state(RunState(state="stopped", attempt=1))
        request_resume(home, resume_run)
    away = take_away(store)
    if not is_there:
        store.folder.unlink()
    loop.tick()
    assert resume_is_requested(home, resume_run)

    bring_back(store, away)
    loop.tick()
    assert resume_run.folder.read_state().state == "queued"
    assert not resume_is_requested(home, resume_run)


def test_a_request_to_resume_is_kept_while_the_folder_cannot_be_swept(home, resume_run, monkeypatch):
    def refuse(_: RunStore) -> None:
        raise StorageError(
            "The lock file create-ann.lock cannot be used (No space left on device).", "Free some space."
        )

    loop = SupervisorLoop(home, fake_settings(devices=lambda: ()))
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "sweep", refuse)
        loop.tick()
    assert resume_is_requested(home, resume_run)

    loop.tick()
    assert resume_run.folder.read_state().state == "queued"


def test_a_request_to_resume_a_run_that_was_deleted_is_forgotten(home, resume_run):
    shutil.rmtree(resume_run.folder.path)
    SupervisorLoop(home, fake_settings()).tick()

    assert not resume_is_requested(home, resume_run)

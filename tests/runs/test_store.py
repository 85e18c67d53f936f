import os
import stat
import subprocess
import sys
import time

import pytest
import yaml

from loratory.engine.config.load import config_from_mapping, mapping_from_yaml
from loratory.engine.errors import RunError, StorageError
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.provenance import Provenance, read_provenance
from loratory.engine.runs.run import RUN_ID, RunState
from loratory.engine.runs.store import RunStore, list_owners
from loratory.engine.supervision.supervisor import reconcile
from tests.event_log import write_log
from tests.supervision.fake_runs import config_for, fake_settings


def end_run(run):
    run.folder.write_state(RunState(state="completed"))
    return run


def test_a_run_is_saved_complete_and_for_its_owner_only(store, home):
    config = config_for("first")
    run = store.create(config, Provenance(dataset_fingerprint="abc"))

    assert config_from_mapping(mapping_from_yaml(run.folder.config.read_text())) == config
    assert yaml.safe_load(run.folder.config.read_text())["training"]["seed"] == 42, "defaults are written out"
    assert read_provenance(run.folder).dataset_fingerprint == "abc"
    assert run.folder.path == home.runs / "ann" / run.id
    assert stat.S_IMODE(run.folder.path.stat().st_mode) == 0o700
    assert run.folder.read_state().state == "queued"
    assert not list(run.folder.path.parent.glob(".*")), "nothing half-made stays"


def test_ids_sort_by_time_even_when_the_clock_stands_still_or_goes_back(home):
    times = iter([1000.0, 1000.0, 1000.0, 999.5, 1001.0])
    store = RunStore(home, "ann", clock=lambda: next(times))

    ids = [store.create(config_for()).id for _ in range(5)]

    assert ids == sorted(ids)
    assert len(set(ids)) == 5
    assert all(RUN_ID.match(run_id) for run_id in ids)
    assert store.ids() == ids[::-1]


def test_a_clock_that_was_years_ahead_once_does_not_bind_later_runs(home):
    times = iter([4e9, 1.7e9])
    store = RunStore(home, "ann", clock=lambda: next(times))
    store.create(config_for())

    assert store.create(config_for()).id.startswith("20231114")


@pytest.mark.parametrize(
    "bad", ["../../etc", "/etc/passwd", "..", "", "x" * 5000, "a\0b", "%2e%2e", ".", "20260101-000000-000-abcd\n"]
)
def test_ids_from_outside_are_looked_up_and_never_made_into_paths(store, bad):
    run = store.create(config_for())
    with pytest.raises(RunError, match=r"not found|means"):
        store.get(bad)
    with pytest.raises(RunError):
        store.delete(bad)
    assert run.folder.path.is_dir()


def test_the_last_characters_of_an_id_are_enough_while_only_one_run_has_them(store, home):
    run = store.create(config_for())
    assert store.get(run.id[-4:]).id == run.id

    twin = f"19990101-000000-000{run.id[-5:]}"
    (home.runs / "ann" / twin).mkdir()
    with pytest.raises(RunError, match="means 2 runs"):
        store.get(run.id[-4:])
    with pytest.raises(RunError):
        store.get(run.id[-1:])


def test_owners_do_not_see_each_others_runs(home):
    mine, theirs = RunStore(home, "ann"), RunStore(home, "bob")
    run = theirs.create(config_for())

    assert mine.list() == []
    with pytest.raises(RunError):
        mine.get(run.id)
    assert list_owners(home) == ["bob"]
    with pytest.raises(StorageError):
        RunStore(home, "../bob")


def test_processes_with_one_key_make_one_run(home, store):
    script = (
        "from loratory.engine.paths import LoratoryHome; from loratory.engine.runs.store import RunStore; "
        "from tests.supervision.fake_runs import config_for; "
        "print(RunStore(LoratoryHome.from_environment(), 'ann').create(config_for(), key='k').id)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    ids = {process.communicate()[0].strip() for process in processes}

    assert ids == set(store.ids())
    assert len(ids) == 1


def test_keys_of_two_owners_do_not_meet(home):
    anns, bobs = RunStore(home, "ann"), RunStore(home, "bob")
    run = anns.create(config_for(), key="k")
    assert bobs.create(config_for(), key="k").id != run.id
    assert bobs.find_by_key("k").owner == "bob"


def test_deleting_frees_what_the_run_had_saved(store):
    run = end_run(store.create(config_for()))
    run.folder.adapter.mkdir()
    (run.folder.adapter / "adapter_model.safetensors").write_bytes(b"x" * 5000)

    assert store.delete(run.id) > 5000
    assert store.ids() == []
    assert list(store.folder.iterdir()) == []


def test_a_deletion_that_a_starting_server_helps_with_is_not_an_error(store, home, monkeypatch):
    """The server sweeps before the deletion removes its first file, and again behind its second."""
    run, removed, remove = end_run(store.create(config_for())), [], os.unlink

    def sweep_meanwhile(path, **where):
        remove(path, **where)
        removed.append(path)
        if len(removed) == 3:
            RunStore(home, store.owner).sweep()

    monkeypatch.setattr("os.unlink", sweep_meanwhile)
    assert store.delete(run.id) > 0

    assert len(removed) > 3
    assert list(store.folder.iterdir()) == []


def test_a_run_that_lost_its_state_file_can_be_deleted_once_it_was_checked(store):
    run = store.create(config_for())
    write_log(run.folder.events, StatusData(phase="stopped", message="Stopped."))
    claim = run.folder.claim()
    with pytest.raises(RunError, match="is running and cannot be deleted"):
        store.delete(run.id)
    claim.lock.release()
    run.folder.process.unlink()  # it names this process, which lives on
    reconcile(store.home, fake_settings())

    assert store.delete(run.id) > 0
    assert store.ids() == []


def test_the_key_of_a_start_lives_as_long_as_its_run(home, store):
    run = store.create(config_for(), key="click")
    assert store.create(config_for(), key="click").id == run.id
    run.folder.write_state(RunState(state="stopped"))

    store.delete(run.id)

    assert list((home.server / "keys").iterdir()) == []
    assert store.find_by_key("click") is None


@pytest.mark.parametrize("state", ["queued", "starting", "running", "stopping"])
def test_a_run_that_waits_or_runs_is_never_deleted(store, state):
    run = store.create(config_for())
    run.folder.write_state(RunState(state=state))

    with pytest.raises(RunError, match=f"is {state} and cannot be deleted"):
        store.delete(run.id)
    assert run.folder.config.is_file()


def test_a_run_with_a_living_worker_is_never_deleted_regardless_of_its_state(store):
    run = store.create(config_for())
    claim = run.folder.claim()
    end_run(run)

    with pytest.raises(RunError, match="cannot be deleted"):
        store.delete(run.id)
    claim.lock.release()


def test_a_run_that_another_host_makes_at_this_moment_is_not_swept(store):
    """Its lock may not be seen here."""
    run = store.create(config_for())
    in_the_making = store.folder / f".new-{run.id}"
    run.folder.path.rename(in_the_making)

    store.sweep()
    assert in_the_making.is_dir()

    RunStore(store.home, store.owner, clock=lambda: time.time() + 7200).sweep()
    assert not in_the_making.exists()


def test_what_a_crash_left_half_made_or_half_deleted_is_swept(store):
    run = store.create(config_for())
    (store.folder / ".new-20260101-000000-000-abcd").mkdir()
    (store.folder / ".deleted-20260101-000000-000-abcd").mkdir()
    (store.folder / "somebody's folder").mkdir()
    assert store.ids() == [run.id]

    store.sweep()

    assert sorted(path.name for path in store.folder.iterdir()) == sorted([run.id, "somebody's folder"])


def test_a_home_that_cannot_be_written_is_one_clear_error(home, store, monkeypatch):
    store.create(config_for())

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(StorageError, match="cannot be made"):
        store.create(config_for())

"""A Space whose disk is gone finds its runs, people and settings again, and nothing else."""

import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from engine.accounts.accounts import Accounts, open_database
from engine.accounts.lab import LabSettings, read_settings, save_settings
from engine.accounts.passwords import Passwords
from engine.accounts.sessions import Sessions
from engine.errors import HubUnreachableError, PushError
from engine.paths import LoratoryHome
from engine.runs.checkpoints import Manifest, damage, describe_files, list_checkpoints
from engine.runs.history.events import StepData
from engine.runs.history.log import EventWriter
from engine.runs.run import RunState
from engine.runs.store import RunStore
from engine.space.mirror import Mirror, MirrorSettings
from engine.space.mirror_index import Index
from engine.space.mirror_restore import Restored
from tests.accounts.conftest import PASSWORD
from tests.invented_runs import InventedRun, a_config, write_adapter, write_checkpoint, write_run
from tests.runs.supervision import wait_until
from tests.space.fake_bucket import FakeBucket, Killed

SPACE = "ann/lab"
AWAY = HubUnreachableError("The bucket cannot be reached.", "Wait.")


@pytest.fixture
def bucket():
    return FakeBucket()


@pytest.fixture
def empty_home(tmp_path):
    """Makes the home of a Space whose disk is new."""
    made = iter(range(100))

    def make():
        home = LoratoryHome(tmp_path / f"disk-{next(made)}")
        home.make_writable()
        return home

    return make


@pytest.fixture
def home(empty_home):
    return empty_home()


class Starts:
    """Starts Spaces on one bucket."""

    def __init__(self, bucket):
        self._bucket = bucket
        self.restored = Restored()

    def __call__(self, home, space=SPACE):
        mirror = Mirror(home, self._bucket, space, MirrorSettings(look=0.02, patience=0))
        self.restored = mirror.restore()
        return mirror


@pytest.fixture
def mirror_of(bucket):
    """Restores a home, as a Space that starts does, and gives its mirror."""
    return Starts(bucket)


def old(home):
    """Let everything have happened a while ago, so nothing is looked at twice for its age."""
    then = time.time() - 60
    for parent, folders, names in os.walk(home.root):
        for name in [*folders, *names]:
            os.utime(Path(parent) / name, (then, then))


def a_run(home, owner="ann", **changes):
    return write_run(RunStore(home, owner), a_config(), InventedRun(**changes))


def files_of(run):
    return {
        path.relative_to(run.folder.path).as_posix(): path.read_bytes()
        for path in run.folder.path.rglob("*")
        if path.is_file() and path.name not in ("lock", "process.json")
    }


def test_runs_and_who_owns_them_are_back_on_an_empty_disk(home, empty_home, mirror_of):
    runs = [a_run(home, owner, state=state, seed=number, resumable_step=120) for number, (owner, state) in enumerate(
        [("ann", "completed"), ("bea", "stopped"), ("ann", "failed")]
    )]  # fmt: skip
    runs[0].folder.shared_mark.touch()
    mirror = mirror_of(home)
    mirror._save()

    again = empty_home()
    mirror_of(again)

    for run in runs:
        back = RunStore(again, run.owner).get(run.id)
        steps = [one.step for one in list_checkpoints(run.folder.checkpoints)]
        kept = {name: data for name, data in files_of(run).items() if not name.startswith("checkpoints/")}
        newest = f"checkpoints/step-{max(steps)}/"
        kept |= {name: data for name, data in files_of(run).items() if name.startswith(newest)}
        assert files_of(back) == kept
        assert not damage(list_checkpoints(back.folder.checkpoints)[-1])
    assert mirror_of.restored.runs == 3
    assert mirror_of.restored.left_out == ()


def test_people_and_settings_are_back_and_sessions_are_not(home, empty_home, mirror_of, bucket):
    quick_passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    with contextlib.closing(open_database(home)) as database:
        accounts = Accounts(database, quick_passwords)
        accounts.accept(accounts.invite("admin", by="").token, "ann", PASSWORD)
        token = Sessions(database).begin(accounts.person("ann"), "1.2.3.4", "browser")
        save_settings(home, LabSettings(public_url="https://ann-lab.hf.space"))
        mirror_of(home)._save()

    again = empty_home()
    mirror_of(again)

    assert mirror_of.restored.people == 1
    assert read_settings(again).public_url == "https://ann-lab.hf.space"
    with contextlib.closing(open_database(again)) as database:
        assert Accounts(database, quick_passwords).person("ann").role == "admin"
        assert database.rows("SELECT * FROM sessions") == []
    assert all(str(token).encode() not in data for data in bucket.files.values())


def test_an_idle_mirror_asks_nothing(home, mirror_of, bucket):
    for number in range(5):
        a_run(home, seed=number)
    mirror = mirror_of(home)
    mirror._save()
    old(home)
    mirror._save()
    before = bucket.asked.copy()
    for _ in range(20):
        mirror._save()

    assert bucket.asked == before


def test_a_long_event_log_is_sent_once(home, mirror_of, bucket):
    run = a_run(home, state="running", steps=12_000)
    size = run.folder.events.stat().st_size
    assert size > 2_000_000
    mirror = mirror_of(home)
    mirror._save()
    before = bucket.sent
    with EventWriter(run.folder.events, attempt=1) as events:
        for step in range(12_001, 12_021):
            events.append(StepData(step=step, epoch=1.0, loss=1.0, learning_rate=1e-4, tokens=9, tokens_per_second=1.0))
            mirror._save()

    assert bucket.sent - before < 20 * 300_000
    index = Index.model_validate_json(bucket.files[f"runs/ann/{run.id}.json"])
    assert index.files[f"runs/ann/{run.id}/events.jsonl"].size == run.folder.events.stat().st_size


def test_older_checkpoints_leave_the_bucket_once_the_newer_is_there(home, empty_home, mirror_of, bucket):
    run = a_run(home, state="running", steps=10)
    write_checkpoint(run, 4)
    mirror = mirror_of(home)
    mirror._save()
    (run.folder.checkpoint(4) / "adapter" / "optimizer.pt").write_bytes(os.urandom(50_000))
    write_checkpoint(run, 8)
    (run.folder.checkpoint(8) / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(19_000))
    (run.folder.checkpoint(8) / "MANIFEST.json").unlink()
    mirror._save()
    assert mirror.unsaved("ann").training == ((run_title(run), 4),), "one without a manifest is not complete"

    mirror._save()
    again = empty_home()
    mirror_of(again)
    back = RunStore(again, "ann").get(run.id)
    assert [one.step for one in list_checkpoints(back.folder.checkpoints)] == [4]


def run_title(run):
    from engine.runs.provenance import read_provenance

    return read_provenance(run.folder).title


def test_a_run_that_was_deleted_stays_deleted(home, empty_home, mirror_of, bucket):
    run, kept = a_run(home, seed=1), a_run(home, seed=2)
    mirror = mirror_of(home)
    mirror._save()
    RunStore(home, "ann").delete(run.id)
    mirror._save()

    again = empty_home()
    mirror_of(again)
    assert RunStore(again, "ann").ids() == [kept.id]
    names = set(bucket.files)
    named = {f"data/{part.sha256}" for name in names if name.startswith("runs/") or name == "mirror/home.json"
             for part in Index.model_validate_json(bucket.files[name]).parts}  # fmt: skip
    assert {name for name in names if name.startswith("data/")} == named


def test_a_run_deleted_while_the_network_was_away_stays_deleted_after_a_restart(home, empty_home, mirror_of, bucket):
    run = a_run(home)
    mirror_of(home)._save()
    RunStore(home, "ann").delete(run.id)

    mirror = mirror_of(home)  # the process alone started again
    assert RunStore(home, "ann").ids() == []
    mirror._save()

    again = empty_home()
    mirror_of(again)
    assert RunStore(again, "ann").ids() == []


def test_nothing_here_is_overwritten(home, mirror_of, empty_home):
    run = a_run(home)
    mirror_of(home)._save()
    again = empty_home()
    place = RunStore(again, "ann").folder / run.id
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("mine")
    (again.root / "lab.yaml").write_text("public_url: https://mine.example\n")

    mirror_of(again)

    assert [path.name for path in place.iterdir()] == ["config.yaml"]
    assert (again.root / "lab.yaml").read_text() == "public_url: https://mine.example\n"


def test_another_space_is_refused_and_destroys_nothing(home, empty_home, mirror_of, bucket):
    a_run(home)
    mirror_of(home)._save()
    before = dict(bucket.files)
    copy = empty_home()

    with pytest.raises(PushError, match="has the runs of the Space ann/lab, not of bea/copy"):
        mirror_of(copy, "bea/copy")
    assert bucket.files == before


def test_a_process_that_was_replaced_stops_writing(home, empty_home, mirror_of, bucket):
    a_run(home)
    first = mirror_of(home)
    first._save()
    second_home = empty_home()
    mirror_of(second_home)
    before = dict(bucket.files)
    a_run(home, seed=3)
    first._written._checked = 0.0

    with pytest.raises(PushError, match="Another process has begun to save"):
        first._save()
    assert bucket.files == before


@pytest.mark.parametrize("kind", ["make", "list", "put", "get"])
def test_a_bucket_that_is_away_at_the_start_loses_nothing(home, empty_home, mirror_of, bucket, kind):
    a_run(home)
    mirror_of(home)._save()
    before = {name: data for name, data in bucket.files.items() if name != "mirror/space.json"}

    def refuse(asked):
        if asked == kind:
            raise AWAY

    bucket.refuse = refuse
    again = empty_home()
    mirror = Mirror(again, bucket, SPACE, MirrorSettings(patience=0))
    with pytest.raises(HubUnreachableError):
        mirror.restore()
    bucket.refuse = lambda _: None
    mirror.start()
    assert not mirror.stop(1)
    assert "cannot be reached" in mirror.unsaved("ann").words
    assert {name: data for name, data in bucket.files.items() if name != "mirror/space.json"} == before


def test_saving_goes_on_after_trouble_and_after_answers_that_were_lost(home, empty_home, mirror_of, bucket):
    run = a_run(home)
    mirror = mirror_of(home)
    mirror.start()
    bucket.lost = AWAY
    wait_until(lambda: f"runs/ann/{run.id}.json" in bucket.files, 10)
    refused = []

    def refuse(kind):
        refused.append(kind)
        raise PushError("The account has no room.", "Add storage.")

    bucket.refuse = refuse
    other = a_run(home, seed=2)
    wait_until(lambda: len(refused) > 1, 10)
    assert "no room" in mirror.unsaved("ann").words
    assert mirror.unsaved("ann").runs
    bucket.refuse = lambda _: None
    wait_until(lambda: mirror.unsaved("ann").words == "", 10)
    assert mirror.stop(5)

    again = empty_home()
    mirror_of(again)
    assert set(RunStore(again, "ann").ids()) == {run.id, other.id}


def test_killed_at_any_moment_the_state_before_or_the_one_after_is_found(home, empty_home, tmp_path):
    run = a_run(home, state="running", steps=10)
    write_checkpoint(run, 4)
    (run.folder.checkpoint(4) / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(19_000))
    write_manifest(run.folder.checkpoint(4), 4)
    place = tmp_path / "before"
    shutil.copytree(home.root, place)
    before = what_restarts_find(run)
    write_checkpoint(run, 8)
    (run.folder.checkpoint(8) / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(19_000))
    write_manifest(run.folder.checkpoint(8), 8)
    shutil.rmtree(run.folder.checkpoint(4))
    write_adapter(run.folder.adapter)
    (run.folder.adapter / "adapter_model.safetensors").write_bytes(os.urandom(19_000))
    (run.folder.adapter / "tokenizer.json").write_bytes(os.urandom(17_000))
    run.folder.write_state(RunState(state="completed", attempt=1))
    after = what_restarts_find(run)
    seen = []
    for moment in itertools.count():
        bucket, disk = FakeBucket(), LoratoryHome(tmp_path / f"moment-{moment}")
        shutil.copytree(place, disk.root)
        mirror = begin(disk, bucket)
        mirror._save()
        shutil.rmtree(disk.runs)
        shutil.copytree(home.runs, disk.runs)
        bucket.after_each = kill_after(moment)
        try:
            mirror._save()
            break
        except Killed:
            bucket.after_each = lambda _: None
        again = empty_home()
        begin(again, bucket)
        seen.append(what_restarts_find(RunStore(again, "ann").get(run.id)))
        begin(disk, bucket)._save()  # the process starts again on its disk
        last = empty_home()
        begin(last, bucket)
        assert what_restarts_find(RunStore(last, "ann").get(run.id)) == after
    assert len(seen) > 4
    assert seen[0] == before
    assert seen[-1] == after
    assert all(one in (before, after) for one in seen)


def begin(home, bucket):
    mirror = Mirror(home, bucket, SPACE, MirrorSettings(patience=0))
    assert mirror.restore().left_out == ()
    return mirror


def kill_after(moment):
    left = iter(range(moment))

    def kill(_):
        if next(left, None) is None:
            raise Killed

    return kill


def write_manifest(folder, step):
    (folder / "MANIFEST.json").unlink(missing_ok=True)
    (folder / "MANIFEST.json").write_text(Manifest(step=step, files=describe_files(folder)).model_dump_json())


def what_restarts_find(run):
    files = files_of(run)
    newest = run.folder.newest_checkpoint_step()
    whole = {name: data for name, data in files.items() if not name.startswith("checkpoints/")}
    return newest, whole, damage(list_checkpoints(run.folder.checkpoints)[-1])


def test_a_run_at_work_is_known_as_interrupted_by_a_restart(home, empty_home, mirror_of):
    run = a_run(home, state="running", steps=40)
    run.folder.write_state(RunState(state="running", attempt=1, started=1.0, device="cpu"))
    mirror_of(home)._save()

    again = empty_home()
    mirror_of(again)
    worker = RunStore(again, "ann").get(run.id).folder.read_worker()
    assert worker.liveness() == "gone"
    assert worker.attempt == 1

"""A Space whose disk is gone finds its runs, people and settings again, and nothing else."""

import contextlib
import itertools
import os
import shutil

from argon2 import PasswordHasher

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.lab import LabSettings, read_settings, save_settings
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.config.presets import save_preset
from loratory.engine.data.media.store import MediaStore
from loratory.engine.evaluation.prompt_sets import PromptSets
from loratory.engine.files import write_atomically
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.checkpoints import Manifest, damage, list_checkpoints
from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from tests.accounts.conftest import PASSWORD
from tests.data.pictures import picture
from tests.invented_runs import write_adapter
from tests.space.fake_bucket import FakeBucket, Killed
from tests.space.mirrored import Spaces, a_checkpoint, a_run, age, files_of, paths_of, stored_in


def test_runs_and_who_owns_them_are_back_on_an_empty_disk(home, spaces):
    runs = [a_run(home, owner, state=state, seed=number, resumable_step=120) for number, (owner, state) in enumerate(
        [("ann", "completed"), ("bea", "stopped"), ("ann", "failed")]
    )]  # fmt: skip
    runs[0].folder.shared_mark.touch()
    mirror = spaces.begin(home)
    mirror.save()

    again = spaces.again()

    for run in runs:
        back = RunStore(again, run.owner).get(run.id)
        steps = [checkpoint.step for checkpoint in list_checkpoints(run.folder.checkpoints)]
        remaining = {name: data for name, data in files_of(run).items() if not name.startswith("checkpoints/")}
        newest = f"checkpoints/step-{max(steps)}/"
        remaining |= {name: data for name, data in files_of(run).items() if name.startswith(newest)}
        assert files_of(back) == remaining
        assert not damage(list_checkpoints(back.folder.checkpoints)[-1])
    assert spaces.restored.runs == 3
    assert spaces.restored.left_out == ()


def test_people_and_settings_are_back_and_sessions_are_not(home, spaces, bucket):
    quick_passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    with contextlib.closing(open_database(home)) as database:
        accounts = Accounts(database, quick_passwords)
        accounts.accept(accounts.invite("admin", by="").token, "ann", PASSWORD)
        token = Sessions(database).begin(accounts.person("ann"), "1.2.3.4", "browser")
        save_settings(home, LabSettings(public_url="https://ann-lab.hf.space"))
        spaces.begin(home).save()

    again = spaces.again()

    assert read_settings(again).public_url == "https://ann-lab.hf.space"
    with contextlib.closing(open_database(again)) as database:
        assert Accounts(database, quick_passwords).person("ann").role == "admin"
        assert database.rows("SELECT * FROM sessions") == []
    assert all(str(token).encode() not in data for data in bucket.files.values())


def test_an_idle_mirror_asks_nothing(home, spaces, bucket):
    for number in range(5):
        a_run(home, seed=number)
    mirror = spaces.begin(home)
    mirror.save()
    age(home)
    mirror.save()
    before = bucket.requests.copy()
    for _ in range(20):
        mirror.save()

    assert bucket.requests == before


def test_a_log_that_grows_is_sent_and_nothing_else(home, spaces, bucket):
    run = a_run(home, state="running", steps=300)
    mirror = spaces.begin(home)
    mirror.save()
    before = bucket.sent
    with EventWriter(run.folder.events, attempt=1) as events:
        events.append(StepData(step=301, epoch=1.0, loss=1.0, learning_rate=1e-4, tokens=9, tokens_per_second=1.0))
    mirror.save()

    log = bucket.files[f"home/runs/ann/{run.id}/events.jsonl"]
    assert log == run.folder.events.read_bytes()
    assert bucket.sent - before == len(log)


def test_older_checkpoints_leave_the_bucket_once_the_newer_is_there(home, spaces, bucket):
    run = a_run(home, state="running", steps=10)
    a_checkpoint(run, 4)
    mirror = spaces.begin(home)
    mirror.save()
    newer = a_checkpoint(run, 8)
    (newer / "MANIFEST.json").rename(newer / "not yet")
    mirror.save()
    assert steps_of(RunStore(spaces.again(), "ann").get(run.id)) == [4], "one without a manifest is not complete"
    mirror = spaces.begin(home)
    (newer / "not yet").rename(newer / "MANIFEST.json")
    mirror.save()

    assert steps_of(run) == [4, 8]
    back = RunStore(spaces.again(), "ann").get(run.id)
    assert steps_of(back) == [8]
    assert stored_in(bucket) == paths_of(back)


def steps_of(run):
    return [checkpoint.step for checkpoint in list_checkpoints(run.folder.checkpoints)]


def test_the_best_checkpoint_stays_with_the_newest(home, spaces):
    run = a_run(home, state="running", steps=10)
    for step in (4, 8, 12):
        folder = a_checkpoint(run, step)
        manifest = Manifest.model_validate_json((folder / "MANIFEST.json").read_bytes())
        (folder / "MANIFEST.json").write_text(manifest.model_copy(update={"best": step == 4}).model_dump_json())
    spaces.begin(home).save()

    assert steps_of(RunStore(spaces.again(), "ann").get(run.id)) == [4, 12]


def test_a_damaged_checkpoint_does_not_replace_a_whole_one(home, spaces):
    run = a_run(home, state="running", steps=10)
    a_checkpoint(run, 4)
    (a_checkpoint(run, 8) / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    spaces.begin(home).save()

    assert steps_of(RunStore(spaces.again(), "ann").get(run.id)) == [4]


def test_a_run_that_was_deleted_stays_deleted(home, spaces, bucket):
    run, other_run = a_run(home, seed=1), a_run(home, seed=2)
    mirror = spaces.begin(home)
    mirror.save()
    RunStore(home, "ann").delete(run.id)
    mirror.save()

    again = spaces.again()
    assert RunStore(again, "ann").ids() == [other_run.id]
    assert stored_in(bucket) == paths_of(RunStore(again, "ann").get(other_run.id))


def test_a_run_deleted_while_the_network_was_away_stays_deleted_after_a_restart(home, spaces, bucket):
    run = a_run(home)
    spaces.begin(home).save()
    RunStore(home, "ann").delete(run.id)

    mirror = spaces.begin(home)  # the process alone started again
    assert RunStore(home, "ann").ids() == []
    mirror.save()

    again = spaces.again()
    assert RunStore(again, "ann").ids() == []


def test_votes_are_saved_with_their_owner(home, spaces):
    for owner in ("ann", "bea"):
        write_atomically(home.for_person(owner).votes / "votes.jsonl", f"{owner}\n", makes_folder=True)
    PromptSets(home.for_person("ann")).save("colours", [("Why?", "")])
    spaces.begin(home).save()

    again = spaces.again()

    assert PromptSets(again.for_person("ann")).names() == ["colours"]
    assert [(again.for_person(owner).votes / "votes.jsonl").read_text() for owner in ("ann", "bea")] == [
        "ann\n",
        "bea\n",
    ]


def test_presets_are_saved_with_their_owner_until_they_are_deleted(home, spaces):
    for owner in ("ann", "bea"):
        for name in ("kept", "deleted"):
            save_preset(home.for_person(owner), name, f"# {owner}\n")
    (home.for_person("ann").presets / "not a preset.yaml").write_text("x")
    mirror = spaces.begin(home)
    mirror.save()
    (home.for_person("bea").presets / "deleted.yaml").unlink()
    mirror.save()

    again = spaces.again()

    texts = {
        path.relative_to(again.root / "presets").as_posix(): path.read_text() for path in again.root.glob("presets/*/*")
    }
    assert texts == {"ann/deleted.yaml": "# ann\n", "ann/kept.yaml": "# ann\n", "bea/kept.yaml": "# bea\n"}


def test_nothing_here_is_overwritten(home, spaces):
    run = a_run(home)
    spaces.begin(home).save()
    again = spaces.disk()
    folder = RunStore(again, "ann").folder / run.id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("mine")
    (again.root / "lab.yaml").write_text("public_url: https://mine.example\n")

    spaces.begin(again)

    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert (again.root / "lab.yaml").read_text() == "public_url: https://mine.example\n"


def test_killed_at_any_moment_a_run_comes_back_with_a_whole_checkpoint(home, tmp_path):
    run = a_run(home, state="running", steps=10)
    a_checkpoint(run, 4)
    write_adapter(run.folder.adapter)
    write_large_weights(run)
    copy = tmp_path / "before"
    shutil.copytree(home.root, copy)
    before = files_of(run)
    a_checkpoint(run, 8)
    shutil.rmtree(run.folder.checkpoint(4))
    write_large_weights(run)
    run.folder.write_state(RunState(state="completed", attempt=1))
    after = files_of(run)
    checkpoints = []
    for moment in itertools.count():
        bucket = FakeBucket()
        spaces = Spaces(bucket, tmp_path / str(moment))
        disk = spaces.disk()
        shutil.copytree(copy, disk.root, dirs_exist_ok=True)
        mirror = spaces.begin(disk)
        mirror.save()
        disk.runs.rename(tmp_path / f"runs before {moment}")  # kept, as a new file with its inode would pass for sent
        shutil.copytree(home.runs, disk.runs)
        bucket.after_each = kill_after(moment)
        try:
            mirror.save()
            break
        except Killed:
            bucket.after_each = lambda _: None
        back = RunStore(spaces.again(), "ann").get(run.id)
        checkpoints.append(back.folder.newest_checkpoint_step())
        assert not damage(list_checkpoints(back.folder.checkpoints)[-1])
        assert all(data in (before.get(name), after.get(name)) for name, data in files_of(back).items())
        assert all("checkpoints/step-" in sentence for sentence in spaces.restored.left_out)
        spaces.begin(disk).save()  # the process starts again on its disk
        assert files_of(RunStore(spaces.again(), "ann").get(run.id)) == after
        assert stored_in(bucket) == paths_of(run)
    assert len(checkpoints) > 4
    assert checkpoints == sorted(checkpoints)
    assert set(checkpoints) == {4, 8}


def write_large_weights(run):
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        (run.folder.adapter / name).write_bytes(os.urandom(19_000))


def kill_after(moment):
    left = iter(range(moment))

    def kill(_):
        if next(left, None) is None:
            raise Killed

    return kill


def test_a_state_that_is_older_than_the_log_counts_its_attempts(home, spaces):
    run = a_run(home, state="running", steps=10)
    with EventWriter(run.folder.events, attempt=2) as events:
        events.append(StepData(step=11, epoch=1.0, loss=1.0, learning_rate=1e-4, tokens=9, tokens_per_second=1.0))
    spaces.begin(home).save()

    back = RunStore(spaces.again(), "ann").get(run.id)
    assert back.folder.read_state().attempt == back.folder.read_worker().attempt == 2


def test_a_run_on_a_job_has_no_worker_here(home, spaces):
    run = a_run(home, state="running", steps=10)
    JobRecord(attempt=1, namespace="ann", flavor="l4x1", limit_hours=2, job_id="a").save(run.folder)
    spaces.begin(home).save()

    back = RunStore(spaces.again(), "ann").get(run.id)
    assert JobRecord.read(back.folder).job_id == "a"
    assert back.folder.read_worker() is None


def test_what_came_from_the_bucket_is_not_sent_again(home, spaces, bucket):
    run = a_run(home, state="stopped", steps=300, resumable_step=400)
    a_checkpoint(run, 400)
    spaces.begin(home).save()
    mirror = spaces.begin(spaces.disk())
    assert spaces.restored.runs == 1
    before = bucket.sent
    mirror.save()

    assert bucket.sent == before


def test_images_of_rows_are_back_by_their_digests(home, spaces, bucket):
    store = MediaStore(home.for_person("ann").media)
    ref = store.add(picture("red", (40, 30)))
    mirror = spaces.begin(home)
    mirror.save()

    again = spaces.again()

    assert MediaStore(again.for_person("ann").media).find(ref.digest) == ref
    assert MediaStore(again.for_person("bea").media).find(ref.digest) is None
    assert [name for name in bucket.files if "media" in name] == [
        f"home/media/ann/{ref.digest[:2]}/{store.path(ref).name}"  # and not the decoder's log
    ]

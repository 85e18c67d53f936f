"""What is in the bucket is not believed: damaged, foreign, too large, or leading elsewhere."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from engine import hub as hub_bucket
from engine.accounts.accounts import open_database
from engine.accounts.limits import DATABASE_FILE
from engine.errors import PushError
from engine.hub import MIRROR
from engine.runs.history.log import read_lines
from engine.runs.store import RunStore, list_owners
from engine.space import mirror_index, mirror_restore
from engine.space.mirror_index import index_of
from tests.space.mirrored import a_checkpoint, a_run, files_of


@pytest.fixture
def space(spaces):
    """A run in the bucket."""
    home = spaces.disk()
    run = a_run(home, state="stopped", steps=200, resumable_step=300)
    a_checkpoint(run, 300)
    spaces.begin(home).save()
    return run


def index_name(run):
    return index_of(run.owner, run.id)


def change(bucket, run, edit):
    """Edit the files of an index."""
    index = json.loads(bucket.files[index_name(run)])
    edit(index["files"])
    bucket.files[index_name(run)] = json.dumps(index).encode()


def stored_name(run, inside):
    return f"home/runs/{run.owner}/{run.id}/{inside}"


ELSEWHERE = [
    "../outside", "/etc/outside", "runs/ann/../../outside", "runs/bea/20260101-000000-000-abcd/config.yaml", "lab.yaml",
    "uploads/bea/rows.jsonl", "uploads/ann/../bea/rows.jsonl", "server/supervisor.json", "uploads", "uploads/",
    "{run}/lock", "{run}/process.json", "{run}/.hidden", "{run}/control/../../x", "{run}//x", "{run}/a\\b", "{run}/a\0b",
    "{run}/" + "x/" * 20 + "x", "{run}/" + "x" * 300, "{run}/.new-x/config.yaml", "accounts.sqlite3",
    "{run}/config.yaml/below", "{run}/adapter",  # a file that is a folder as well
]  # fmt: skip


@pytest.mark.parametrize("path", ELSEWHERE)
def test_an_index_reaches_no_file_but_its_own(space, bucket, spaces, path):
    named = path.replace("{run}", f"runs/ann/{space.id}")
    change(bucket, space, lambda files: files.update({named: "outside"}))

    home = spaces.again()

    assert "does not belong to" in spaces.restored.words
    assert RunStore(home, "ann").get(space.id).folder.config.is_file()
    for place in home.root.parent.rglob("*"):
        assert not place.is_file() or b"outside" not in place.read_bytes()


def test_what_does_not_match_its_hash_is_left_out(space, bucket, spaces):
    whole = files_of(space)
    units = ("checkpoints/step-300/adapter", "adapter")
    for unit in units:
        bucket.files[stored_name(space, f"{unit}/adapter_model.safetensors")] = os.urandom(19_000)

    back = RunStore(spaces.again(), "ann").get(space.id)

    assert spaces.restored.left_out == tuple(
        f"runs/ann/{space.id}/{unit} is damaged in the bucket and was left out."
        for unit in ("adapter", "checkpoints/step-300")
    )
    assert not back.folder.checkpoint(300).exists()
    assert not back.folder.adapter.exists()
    assert files_of(back)["config.yaml"] == whole["config.yaml"]


def test_a_torn_event_log_keeps_what_is_before(space, bucket, spaces):
    events = space.folder.events.read_bytes()
    assert len(events) > 16_384
    name = stored_name(space, "events.jsonl")
    bucket.files[name] = bucket.files[name][:-100]

    home = spaces.disk()
    mirror = spaces.begin(home)
    back = RunStore(home, "ann").get(space.id)
    assert read_lines(back.folder.events).lines == read_lines(space.folder.events).lines[:-1]

    back.folder.events.write_bytes(events)  # as a worker continues
    mirror.save()
    assert RunStore(spaces.again(), "ann").get(space.id).folder.events.read_bytes() == events


def test_what_arrives_torn_once_is_fetched_again(space, bucket, spaces):
    bucket.torn = {name for name in bucket.files if name.startswith("home/")}

    back = RunStore(spaces.again(), "ann").get(space.id)

    assert spaces.restored.left_out == ()
    assert files_of(back)["adapter/adapter_model.safetensors"] == files_of(space)["adapter/adapter_model.safetensors"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 3, "files": {}}', b'{"files": 3}', b"\xff\xfe", b"[" * 100_000],
)
def test_an_index_that_cannot_be_read_is_left_and_nothing_it_may_name_is_removed(space, bucket, spaces, content):
    bucket.files[index_name(space)] = content
    before = dict(bucket.files)

    mirror = spaces.begin(home := spaces.disk())
    a_run(home, seed=5)
    mirror.save()

    assert "cannot be read" in spaces.restored.words
    assert {name: bucket.files.get(name) for name in before if name != "mirror/space.json"} == {
        name: data for name, data in before.items() if name != "mirror/space.json"
    }


def test_what_is_sent_after_an_index_that_cannot_be_read_is_collected_all_the_same(space, bucket, spaces):
    bucket.files[index_name(space)] = b"{"
    home = spaces.disk()
    mirror = spaces.begin(home)
    before = set(bucket.files)
    run = a_run(home, state="running", steps=10)
    a_checkpoint(run, 4)
    mirror.save()
    shutil.rmtree(run.folder.checkpoint(4))
    a_checkpoint(run, 8)
    mirror.save()

    assert not any("step-4" in name for name in bucket.files)
    assert before <= set(bucket.files)


def test_what_an_earlier_version_saved_is_reported_and_stays_as_it_was(spaces, bucket):
    index = b'{"files": {"runs/ann/x/config.yaml": {"text": "a"}, "lab.yaml": {"parts": [{"sha256": "0", "size": 1}]}}}'
    names = ("runs/ann/20260101-000000-000-abcd.json", "mirror/home.json")
    bucket.files |= {**dict.fromkeys(names, index), "data/0": b"1"}
    before = dict(bucket.files)

    mirror = spaces.begin(home := spaces.disk())
    a_run(home)
    mirror.save()

    assert spaces.restored.left_out == tuple(
        f"{name} was saved by an earlier version of Loratory and was left out; the bucket keeps it for that version."
        for name in names
    )
    assert before.items() <= bucket.files.items()


def test_an_index_larger_than_any_is_not_fetched(space, bucket, spaces, monkeypatch):
    monkeypatch.setattr(mirror_index, "_LARGEST_INDEX_BYTES", 100)

    home = spaces.again()

    assert list_owners(home) == []
    assert "cannot be read" in spaces.restored.words


def test_a_run_larger_than_the_disk_is_not_fetched(space, bucket, spaces, monkeypatch):
    monkeypatch.setattr(mirror_restore, "free_bytes", lambda _: 1_000_050_000)
    name = f"runs/ann/{space.id}/huge"
    bucket.files[f"home/{name}"] = bytes(50_000)  # more than the index says
    change(bucket, space, lambda files: files.update({name: {"size": 1, "changed": 0}}))

    home = spaces.again()

    assert list_owners(home) == []
    assert "1 run does not fit on the disk" in spaces.restored.words
    a_run(home, seed=5)
    spaces.begin(home).save()
    spaces.begin(home).save()
    assert index_name(space) in bucket.files, "it was not deleted here"


def test_foreign_files_stay_where_they_are(space, bucket, spaces):
    foreign = {"runs/x": b"1", "runs/ann/notes.txt": b"2", "photos/a.png": b"3", "home.bin": b"4", "mirror/other": b"5"}
    bucket.files |= foreign

    home = spaces.again()
    a_run(home, seed=5)
    spaces.begin(home).save()

    assert foreign.items() <= bucket.files.items()
    assert len(RunStore(home, "ann").ids()) == 2


def test_a_checkpoint_whose_manifest_names_other_files_is_left_out(space, bucket, spaces):
    path = f"runs/ann/{space.id}/checkpoints/step-300/adapter/chat_template.jinja"
    change(bucket, space, lambda files: files.pop(path))

    back = RunStore(spaces.again(), "ann").get(space.id)

    assert not back.folder.checkpoint(300).exists()
    assert "checkpoints/step-300 is damaged" in spaces.restored.words


def test_a_run_without_a_configuration_is_left_out(space, bucket, spaces):
    change(bucket, space, lambda files: files.pop(f"runs/ann/{space.id}/config.yaml"))

    home = spaces.again()

    assert RunStore(home, "ann").ids() == []
    assert "has no configuration" in spaces.restored.words


def test_damaged_accounts_are_left_out_with_a_message(spaces, bucket):
    home = spaces.disk()
    open_database(home).close()
    spaces.begin(home).save()
    bucket.files[f"home/{DATABASE_FILE}"] = b"no database"

    again = spaces.again()

    assert not (again.root / DATABASE_FILE).exists()
    assert "are damaged" in spaces.restored.words


@pytest.mark.parametrize("content", [b"", b"[]", b'{"space": 1}', bytes(20_000)])
def test_a_marker_that_cannot_be_read_is_replaced(space, bucket, spaces, content):
    bucket.files["mirror/space.json"] = content

    assert RunStore(spaces.again(), "ann").ids() == [space.id]


def test_a_bucket_with_too_much_in_it_is_refused_with_a_message(monkeypatch):
    monkeypatch.setattr(hub_bucket, "_MOST_FILES", 3)
    asked = iter(SimpleNamespace(type="file", path=f"home/{number}") for number in range(10**9))
    api = SimpleNamespace(
        create_bucket=lambda *_, **__: None, bucket_info=lambda _: SimpleNamespace(private=True), endpoint="",
        list_bucket_tree=lambda *_, prefix, **__: asked if prefix == "home/" else iter(()),
        batch_bucket_files=lambda *_, **__: None,
    )  # fmt: skip
    bucket = hub_bucket.RunBucket(api, "ann/bucket", MIRROR.explained)

    with pytest.raises(PushError, match="holds more than 3 files below home"):
        bucket.list("home")
    assert next(asked).path == "home/4"

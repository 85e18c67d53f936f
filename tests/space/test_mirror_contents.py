"""What is in the bucket is not believed: damaged, foreign, too large, or leading elsewhere."""

import os
from types import SimpleNamespace

import pytest

from loratory.engine import hub as hub_bucket
from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.errors import PushError
from loratory.engine.hub import MIRROR
from loratory.engine.runs.history.log import read_lines
from loratory.engine.runs.store import RunStore, list_owners
from loratory.engine.space import mirror_restore
from tests.space.mirrored import a_checkpoint, a_run, files_of


@pytest.fixture
def space(spaces):
    """Return a run in the bucket."""
    home = spaces.disk()
    run = a_run(home, state="stopped", steps=200, resumable_step=300)
    a_checkpoint(run, 300)
    spaces.begin(home).save()
    return run


def stored_name(run, inside):
    return f"home/runs/{run.owner}/{run.id}/{inside}"


ELSEWHERE = [
    "../outside", "/etc/outside", "runs/ann/../../outside", "runs/ann/not-a-run/config.yaml", "runs/ann/notes.txt",
    "uploads/ann/../bea/rows.jsonl", "server/supervisor.json", "uploads", "uploads/", "uploads/rows.jsonl",
    "{run}/lock", "{run}/process.json", "{run}/.hidden", "{run}/control/../../x", "{run}//x", "{run}/a\\b", "{run}/a\0b",
    "{run}/" + "x/" * 20 + "x", "{run}/" + "x" * 300, "{run}/.new-x/config.yaml", "{run}/adapter",  # which is a folder as well
]  # fmt: skip


@pytest.mark.parametrize("path", ELSEWHERE)
def test_nothing_but_files_of_a_home_comes_back_and_the_rest_stays_where_it_is(space, bucket, spaces, path):
    name = "home/" + path.replace("{run}", f"runs/ann/{space.id}")
    bucket.files[name] = b"outside"

    home = spaces.disk()
    mirror = spaces.begin(home)
    mirror.save()

    assert "is not part of a mirror" in spaces.restored.text
    assert RunStore(home, "ann").get(space.id).folder.config.is_file()
    for file in home.root.parent.rglob("*"):
        assert not file.is_file() or b"outside" not in file.read_bytes()
    assert path == "{run}/adapter" or bucket.files[name] == b"outside"


def test_a_checkpoint_that_does_not_match_its_hashes_is_left_out(space, bucket, spaces):
    bucket.files[stored_name(space, "checkpoints/step-300/adapter/adapter_model.safetensors")] = os.urandom(19_000)

    back = RunStore(spaces.again(), "ann").get(space.id)

    left_out = f"runs/ann/{space.id}/checkpoints/step-300 is damaged in the bucket and was left out."
    assert spaces.restored.left_out == (left_out,)
    assert not back.folder.checkpoint(300).exists()
    assert files_of(back)["config.yaml"] == files_of(space)["config.yaml"]


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


def test_a_run_larger_than_the_disk_is_not_fetched(space, bucket, spaces, monkeypatch):
    monkeypatch.setattr(mirror_restore, "free_bytes", lambda _: 1_000_050_000)
    upload = "home/uploads/ann/rows.jsonl"
    bucket.files |= {stored_name(space, "huge"): bytes(50_000), upload: b"{}"}

    home = spaces.again()

    assert list_owners(home) == []
    assert "1 run or upload does not fit on the disk" in spaces.restored.text
    a_run(home, seed=5)
    spaces.begin(home).save()
    spaces.begin(home).save()
    assert {stored_name(space, "config.yaml"), upload} <= bucket.files.keys(), "they were not deleted here"


def test_foreign_files_stay_where_they_are(space, bucket, spaces):
    foreign = {"runs/x": b"1", "home/runs/x": b"2", "photos/a.png": b"3", "home.bin": b"4", "mirror/other": b"5"}
    bucket.files |= foreign

    home = spaces.again()
    a_run(home, seed=5)
    spaces.begin(home).save()

    assert foreign.items() <= bucket.files.items()
    assert len(RunStore(home, "ann").ids()) == 2


def test_a_checkpoint_whose_manifest_names_other_files_is_left_out(space, bucket, spaces):
    del bucket.files[stored_name(space, "checkpoints/step-300/adapter/chat_template.jinja")]

    back = RunStore(spaces.again(), "ann").get(space.id)

    assert not back.folder.checkpoint(300).exists()
    assert "checkpoints/step-300 is damaged" in spaces.restored.text


def test_a_run_without_a_configuration_is_left_out(space, bucket, spaces):
    del bucket.files[stored_name(space, "config.yaml")]
    before = dict(bucket.files)

    home = spaces.disk()
    mirror = spaces.begin(home)
    a_run(home, seed=5)
    mirror.save()

    assert space.id not in RunStore(home, "ann").ids()
    assert "has no configuration" in spaces.restored.text
    assert before.keys() <= bucket.files.keys(), "it may be repaired there"


def test_damaged_accounts_are_left_out_with_a_message(spaces, bucket):
    home = spaces.disk()
    open_database(home).close()
    spaces.begin(home).save()
    bucket.files[f"home/{DATABASE_FILE}"] = b"no database"

    again = spaces.again()

    assert not (again.root / DATABASE_FILE).exists()
    assert "are damaged" in spaces.restored.text


@pytest.mark.parametrize("content", [b"", b"[]", b'{"space": 1}', bytes(20_000)])
def test_a_marker_that_cannot_be_read_is_replaced(space, bucket, spaces, content):
    bucket.files["mirror/space.json"] = content

    assert RunStore(spaces.again(), "ann").ids() == [space.id]


def test_a_bucket_with_too_much_in_it_is_refused_with_a_message(monkeypatch):
    monkeypatch.setattr(hub_bucket, "_MOST_FILES", 3)
    entries = iter(SimpleNamespace(type="file", path=f"home/{number}") for number in range(10**9))
    api = SimpleNamespace(
        create_bucket=lambda *_, **__: None, bucket_info=lambda _: SimpleNamespace(private=True), endpoint="",
        list_bucket_tree=lambda *_, prefix, **__: entries if prefix == "home/" else iter(()),
        batch_bucket_files=lambda *_, **__: None,
    )  # fmt: skip
    bucket = hub_bucket.RunBucket(api, "ann/bucket", MIRROR.explain_errors)

    with pytest.raises(PushError, match="holds more than 3 files below home"):
        bucket.list("home")
    assert next(entries).path == "home/4"

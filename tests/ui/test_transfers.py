"""Uploads and downloads lie below the home, for one user, within limits, and not for ever."""

import os
import stat
import time
from types import SimpleNamespace

import pytest

from loratory.engine.errors import StorageError
from loratory.ui.backend.transfers import Transfers

HOURS = 3600


@pytest.fixture
def transfers(home, monkeypatch) -> Transfers:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    transfers = Transfers(home, largest_file_bytes=1000, largest_total_bytes=2500)
    transfers.prepare()
    return transfers


def upload(transfers: Transfers, name: str, content: bytes = b"{}"):
    incoming = transfers.home.transfers / "digest"
    incoming.mkdir(exist_ok=True)
    (incoming / name).write_bytes(content)
    return incoming / name


def test_files_pass_through_a_folder_of_the_home_that_is_closed_to_others(home, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    home.transfers.mkdir(mode=0o755)

    Transfers(home).prepare()

    assert os.environ["GRADIO_TEMP_DIR"] == str(home.transfers)
    assert stat.S_IMODE(home.transfers.stat().st_mode) == 0o700


def test_what_is_older_than_six_hours_is_swept_and_nothing_else(transfers):
    old, new = upload(transfers, "old.zip"), upload(transfers, "new.zip")
    forgotten = transfers.home.transfers / "forgotten"
    forgotten.mkdir()
    now = time.time()
    os.utime(old, (now - 7 * HOURS,) * 2)
    stored_path = transfers.keep_upload(upload(transfers, "rows.jsonl"))
    os.utime(stored_path, (now - 7 * HOURS,) * 2)

    transfers.prepare()  # a server sweeps when it starts

    assert not old.exists()
    assert not forgotten.exists()
    assert new.exists()
    assert stored_path.exists()
    transfers.sweep(now + 7 * HOURS)
    assert list(transfers.home.transfers.iterdir()) == []


def refusal(transfers: Transfers, bytes_: int) -> str:
    with pytest.raises(StorageError) as error_info, transfers.room_for(bytes_, instead="Copy it."):
        pass
    return str(error_info.value)


def test_one_file_and_all_together_have_a_limit(transfers):
    assert refusal(transfers, 1001) == "The file is 1.0 kB; the page moves files of at most 1.0 kB. Copy it."
    transfers.keep_upload(upload(transfers, "rows.jsonl", b"x" * 900))
    upload(transfers, "result.zip", b"x" * 900)

    assert "use 1.8 kB of at most 2.5 kB" in refusal(transfers, 800)
    with transfers.room_for(400, instead=""):  # not written yet, and counted
        assert "use 2.2 kB of at most 2.5 kB" in refusal(transfers, 400)
    with transfers.room_for(700, instead=""):
        pass


def test_a_full_disk_is_noticed_before_it_is_full(transfers, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300))

    assert refusal(transfers, 400) == "The disk has 300 bytes free; 400 bytes are needed. Free some space."


@pytest.mark.parametrize("name", ["../../etc/passwd", "-rf", "a b\n.jsonl", "x" * 300 + ".csv", "…", "‮cod.exe"])
def test_an_upload_gets_a_safe_name_inside_its_folder(transfers, name):
    stored_path = transfers.keep_upload(upload(transfers, name.replace("/", "_")[-200:]))

    assert stored_path.parent == transfers.home.uploads
    assert len(stored_path.name) <= 130
    assert not stored_path.name.startswith(("-", "."))
    assert stored_path.read_text() == "{}"


def test_an_upload_replaces_none_of_the_same_name_and_the_same_file_is_kept_once(transfers):
    stored_paths = [
        transfers.keep_upload(upload(transfers, "rows.jsonl", content)) for content in (b"one", b"two", b"two")
    ]

    assert [path.read_text() for path in stored_paths] == ["one", "two", "two"]
    assert stored_paths[1] == stored_paths[2]
    assert len(list(transfers.home.uploads.iterdir())) == 2
    assert not (transfers.home.transfers / "digest" / "rows.jsonl").exists()

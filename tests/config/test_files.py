"""Files that are never half-written, paths that never leave their folder, and the home that must be writable."""

import os

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.files import resolve_inside, write_atomically
from loratory.engine.paths import LoratoryHome, data_folders, local_owner


def test_a_failed_write_leaves_the_old_content_and_no_debris(tmp_path, monkeypatch):
    target = tmp_path / "state.json"
    write_atomically(target, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_atomically(target, "new")

    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_replaced_file_is_readable_by_its_owner_alone(tmp_path):
    target = tmp_path / "state.json"
    write_atomically(target, b"x")

    assert target.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["../alice2/x", "/etc/passwd", "a/../../x", "link/x", "a\0b"])
def test_paths_that_leave_their_folder_are_refused(tmp_path, path):
    root = tmp_path / "alice"
    (root / "a").mkdir(parents=True)
    (tmp_path / "alice2").mkdir()
    (root / "link").symlink_to(tmp_path / "alice2")

    with pytest.raises(StorageError, match="outside its allowed folder"):
        resolve_inside(root, path)


def test_a_path_inside_is_resolved(tmp_path):
    assert resolve_inside(tmp_path, "a/../b.txt") == (tmp_path / "b.txt").resolve()


def test_a_home_that_is_a_file_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORATORY_HOME", str(tmp_path / "file"))

    with pytest.raises(StorageError, match="cannot be written") as error_info:
        LoratoryHome.from_environment()

    assert "LORATORY_HOME" in error_info.value.fix


def test_the_owner_is_safe_as_a_folder_name(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "../../Å b")

    assert "/" not in local_owner()
    assert "." not in local_owner()


def test_the_page_reads_below_named_folders_and_never_the_root_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("LORATORY_DATA", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    monkeypatch.setenv("HOME", "/")
    monkeypatch.chdir("/")

    folders = data_folders()

    assert {tmp_path / "a", tmp_path / "b"} <= set(folders)
    assert all(folder.parent != folder for folder in folders)

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.processes.liveness import FileLock

HOLDER = """
import sys
from pathlib import Path
from loratory.engine.processes.liveness import FileLock

lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_holding(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_excludes_other_processes_until_its_holder_is_killed(tmp_path):
    lock = FileLock(tmp_path / "lock")
    with another_process_holding(tmp_path / "lock") as holder:
        assert lock.is_held_by_another()
        assert not lock.acquire(timeout_seconds=0.1)
        holder.kill()
        holder.wait()

        assert not lock.is_held_by_another()
        assert lock.acquire(timeout_seconds=0)


def test_looking_at_a_lock_that_this_process_holds_does_not_drop_it(tmp_path):
    path = tmp_path / "lock"
    lock = FileLock(path)
    assert lock.acquire()

    assert FileLock(path).is_held_by_another()
    assert not lock.is_held_by_another()

    probe = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; from loratory.engine.processes.liveness import FileLock; "
         f"print(FileLock(Path({str(path)!r})).is_held_by_another())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert probe.stdout == "True\n"


def test_looking_does_not_take_a_free_lock_away_from_others(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    assert not FileLock(path).is_held_by_another()

    with another_process_holding(path):
        assert FileLock(path).is_held_by_another()


@pytest.mark.skipif(sys.platform != "linux", reason="others have no way to look that could be tested here")
def test_who_looks_never_has_the_lock_and_keeps_it_from_no_one(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr("fcntl.lockf", lambda *_: pytest.fail("it was taken"))

    assert not FileLock(path).is_held_by_another()


def test_threads_of_one_process_exclude_each_other(tmp_path):
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        with FileLock(tmp_path / "lock"):
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(8) as threads:
        threads.map(enter, range(8))
    assert most == [1] * 8


def test_a_missing_lock_file_is_held_by_no_one(tmp_path):
    assert not FileLock(tmp_path / "absent").is_held_by_another()
    assert not (tmp_path / "absent").exists()


def test_release_lets_the_next_one_in(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert first.is_held
    assert not second.acquire(timeout_seconds=0.05)
    first.release()

    assert second.acquire(timeout_seconds=0)


def test_a_place_where_no_file_can_be_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="lock file"):
        FileLock(tmp_path / "file" / "lock").acquire()


def test_the_folder_of_a_lock_is_made_for_it(tmp_path):
    assert FileLock(tmp_path / "new" / "lock").acquire()

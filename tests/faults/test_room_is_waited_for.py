"""A disk so full that nothing can be said: the worker waits, and no one takes it for one that hangs."""

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.runs.activity import ProgressWatch, SilenceLimits
from loratory.engine.runs.history.events import EventData
from loratory.engine.runs.run import RunFolder
from loratory.engine.training import reporting
from tests.waiting import wait_until

LOOKS = 10
SECONDS_BETWEEN_LOOKS = 50.0


class FullDisk:
    """Stands for the log of a worker; not even the reserve was left."""

    def __init__(self) -> None:
        self.has_room = False

    def append(self, data: EventData) -> object:
        if not self.has_room:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise StorageError(
                "events.jsonl cannot be written (No space left on device).", "Free some space."
            ) from full
        self.seq = 1
        return self


class NobodyAsks:
    def check_cancel(self) -> None: ...

    def stop_wanted(self) -> bool:
        return False


class IdleProcess:
    """It sleeps between two tries, and takes no processor time."""

    def is_suspended(self) -> bool:
        return False

    def cpu_seconds(self) -> float:
        return 1.0


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.events.touch()
    folder.log.touch()
    return folder


@pytest.fixture
def waiting(folder, monkeypatch) -> Iterator[threading.Thread]:
    """Run a worker that waits for disk space to write; it ends when there is some."""
    monkeypatch.setattr(reporting, "_RETRY_SECONDS", 0.01)
    disk = FullDisk()
    events = reporting.RunEvents(disk, folder.path, NobodyAsks())
    thread = threading.Thread(target=events.warn, args=("A word.",))
    thread.start()
    yield thread
    disk.has_room = True
    thread.join(timeout=300)
    assert not thread.is_alive()


def test_a_worker_that_waits_for_room_gives_signs_of_life_that_take_none(folder, waiting):
    now = [0.0]
    watch = ProgressWatch(folder, SilenceLimits(), clock=lambda: now[0])
    silences = []
    for _ in range(LOOKS):
        modified_ns = folder.events.stat().st_mtime_ns
        wait_until(lambda modified_ns=modified_ns: folder.events.stat().st_mtime_ns > modified_ns)
        now[0] += SECONDS_BETWEEN_LOOKS
        silences.append(watch.update(IdleProcess(), is_training=True))

    assert waiting.is_alive()
    assert SilenceLimits().idle_seconds < LOOKS * SECONDS_BETWEEN_LOOKS
    assert [silence.seconds for silence in silences if silence.is_too_long] == []
    assert folder.events.stat().st_size == 0

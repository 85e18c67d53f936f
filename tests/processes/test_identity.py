import os
import signal
import subprocess
import sys

import psutil
import pytest

from loratory.engine.processes.liveness import ProcessIdentity, boot_id, end_group
from tests.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(3600)"]


@pytest.fixture
def sleeper():
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def identity_of(process: subprocess.Popen) -> ProcessIdentity:
    identity = ProcessIdentity.from_pid(process.pid)
    assert identity is not None
    return identity


def test_a_living_process_is_alive_and_survives_json(sleeper):
    identity = identity_of(sleeper)

    assert ProcessIdentity.model_validate_json(identity.model_dump_json()).is_alive()
    assert ProcessIdentity.current().pid == os.getpid()


def test_a_reused_pid_is_not_the_process_that_was_meant(sleeper):
    earlier = identity_of(sleeper).model_copy(update={"start_time": identity_of(sleeper).start_time - 5})

    assert not earlier.is_alive()
    assert not earlier.kill()
    assert sleeper.poll() is None, "the later bearer of the pid was hit"


def test_a_process_from_before_a_reboot_is_not_alive(sleeper):
    before = identity_of(sleeper).model_copy(update={"boot_id": "another boot"})

    assert boot_id() != before.boot_id
    assert not before.is_alive()
    assert not before.kill()
    assert sleeper.poll() is None


def test_a_zombie_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    identity = ProcessIdentity.from_pid(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and no one has collected it

    assert ProcessIdentity.from_pid(process.pid) is None
    assert identity is None or not identity.is_alive()
    process.wait()


def test_kill_ends_the_process(sleeper):
    identity = identity_of(sleeper)

    assert identity.is_alive()
    assert identity.kill()
    wait_until(lambda: not identity.is_alive())
    assert sleeper.wait() == -signal.SIGKILL


def test_a_suspended_process_is_alive_and_known_as_suspended(sleeper):
    identity = identity_of(sleeper)
    assert not identity.is_suspended()

    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)

    assert identity.is_alive()
    assert identity.is_suspended()


def test_what_a_dead_leader_left_behind_is_ended_and_strangers_are_not(monkeypatch):
    environ = psutil.Process.environ
    pids: set[int] = set()

    def without_it_at_first(process: psutil.Process) -> dict[str, str]:
        """Return none at first, as of a process that has just become another program."""
        if process.pid not in pids:
            pids.add(process.pid)
            return {}
        return environ(process)

    leader_script = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen({SLEEP!r})\n"
        f"stranger = subprocess.Popen({SLEEP!r}, env={{**os.environ, 'MARK': 'other'}})\n"
        "print(child.pid, stranger.pid, flush=True)\n"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", leader_script],
        stdout=subprocess.PIPE,
        env={**os.environ, "MARK": "ours"},
        start_new_session=True,
    )
    assert leader.stdout is not None
    child, stranger = (ProcessIdentity.from_pid(int(pid)) for pid in leader.stdout.readline().split())
    leader.wait()
    leader.stdout.close()
    assert child is not None
    assert stranger is not None

    try:
        monkeypatch.setattr(psutil.Process, "environ", without_it_at_first)
        assert end_group(leader.pid, ("MARK", "ours")) == 1
        wait_until(lambda: not child.is_alive())
        assert stranger.is_alive()
    finally:
        stranger.kill()

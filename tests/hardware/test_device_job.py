"""Work that holds a device can be stopped whatever it is silent over: waiting for the device, and working."""

import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from loratory.engine.errors import WorkerError
from loratory.engine.hardware import device_job
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.processes import json_lines
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.messages import CancelledRequestError
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def job(home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cpu = Device("cpu", 0, "Test CPU", 2**30, 2**30, has_fast_bfloat16=True)
    return DeviceJob(home, "tests.processes.answering_worker", "evaluation", "a run", cpu)


def test_what_waits_for_its_device_is_stopped(job, home, another_process, monkeypatch):
    monkeypatch.setattr(device_job, "UNTIL_A_CHAT_LEAVES_SECONDS", math.inf)
    book, stopped = LeaseBook(home), threading.Event()
    book.take(["cpu"], LeaseHolder(purpose="training", title="another run", process=another_process))

    with pytest.raises(CancelledRequestError):
        job.run("echo", {}, stopped, lambda _: None, lambda _: stopped.set())

    assert book.holder("cpu").title == "another run"


def test_what_works_in_silence_is_stopped_and_lets_go_of_its_device(job, home, monkeypatch):
    monkeypatch.setattr(json_lines, "_OBEYS_WITHIN_SECONDS", 0.0)
    stopped = threading.Event()

    with pytest.raises(CancelledRequestError):
        job.run("be_silent", {"seconds": 3600}, stopped, lambda _: stopped.set(), lambda _: None)

    assert LeaseBook(home).holder("cpu") is None


def test_what_looks_for_a_stop_ends_by_itself(job, monkeypatch):
    monkeypatch.setattr(json_lines, "_OBEYS_WITHIN_SECONDS", threading.TIMEOUT_MAX)
    stopped = threading.Event()

    answer = job.run("wait", {}, stopped, lambda _: stopped.set(), lambda _: None)

    assert answer == {"cancelled": True}


def test_a_process_that_ends_before_it_is_asked_is_reported_with_how_it_ended(home, job, monkeypatch):
    missing_worker = replace(job, module="tests.processes.no_such_worker")

    def wait_for_end(pid: int) -> None:
        if pid:  # 0 once its end has been seen
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(ProcessIdentity, "from_pid", wait_for_end)

    with pytest.raises(WorkerError, match=r"ended with code 1 before it answered"):
        missing_worker.run("echo", {}, threading.Event(), lambda _: None, lambda _: None)


ASKER = """
import sys, threading
from pathlib import Path
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.paths import LoratoryHome

cpu = Device("cpu", 0, "Test CPU", 2**30, 2**30, has_fast_bfloat16=True)
job = DeviceJob(LoratoryHome(Path(sys.argv[1])), "tests.processes.confined_worker", "export", "a run", cpu)
job.run("stick", {"seconds": 3600}, threading.Event(), lambda told: print(told, flush=True), lambda _: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process whose interpreter is stuck")
def test_an_orphan_stuck_in_a_library_does_not_keep_its_device(job, home):
    asker = subprocess.Popen([sys.executable, "-c", ASKER, str(home.root)], stdout=subprocess.PIPE)
    assert asker.stdout is not None
    assert b"pid" in asker.stdout.readline()
    holder = LeaseBook(home).holder("cpu")
    assert holder is not None

    asker.kill()
    asker.communicate()

    wait_until(lambda: not holder.process.is_alive())
    assert LeaseBook(home).holder("cpu") is None

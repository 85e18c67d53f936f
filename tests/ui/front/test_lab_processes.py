"""The processes behind the pages of a lab: bounded for all people together, and gone with their server."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.inspector.session import Inspector, InspectorSlots
from loratory.engine.processes.pool import ProcessSlots
from tests.waiting import count_living, wait_until

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE = DatasetConfig(source="sample:lab-chats")
SERVER = """
import sys, time
from pathlib import Path
from loratory.engine.config.run import DatasetConfig
from loratory.engine.inspector.session import Inspector, InspectorSlots
from loratory.engine.paths import LoratoryHome

home, slots = LoratoryHome(Path(sys.argv[1])), InspectorSlots()
inspectors = [Inspector(home.for_person(name), slots=slots) for name in ("ann", "bea")]
for one in inspectors:
    one.preview(DatasetConfig(source="sample:lab-chats"))
print(*(pid for one in inspectors for pid in one.pids), flush=True)
time.sleep(600)
"""


@pytest.mark.e2e
def test_previews_of_many_people_take_turns_in_the_processes_that_a_lab_has(home):
    slots = InspectorSlots(data=ProcessSlots(2))
    inspectors = [Inspector(home.for_person(f"person-{number}"), slots=slots) for number in range(4)]
    pages, most = [], [0]
    threads = [
        threading.Thread(target=lambda inspector=inspector: pages.append(inspector.preview(SAMPLE, count=1)))
        for inspector in inspectors
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most.append(count_living(pid for inspector in inspectors for pid in inspector.pids))
        time.sleep(0.02)
    for inspector in inspectors:
        inspector.close()

    assert len(pages) == 4
    assert max(most) <= 2
    assert not any(inspector.pids for inspector in inspectors)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal")
def test_no_process_of_a_page_survives_a_server_that_is_killed(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert server.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in server.stdout.readline().split()]
    assert len(processes) == 2

    server.send_signal(signal.SIGKILL)
    server.communicate()

    wait_until(lambda: not any(process.is_running() for process in processes))

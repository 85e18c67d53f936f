"""The queue of a lab as people see it: devices, owners, times and reasons, and never another's run."""

import json
import re
import time
from dataclasses import replace

import pytest

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.people import Person
from loratory.engine.hardware.cuda import GpuProgram
from loratory.engine.lab.queue import DeviceUse, QueueBoard, QueueEntry
from loratory.engine.lab.supervision import SNAPSHOT_FILE, QueuedRun, QueueSnapshot
from loratory.engine.runs.disk import DiskUse
from loratory.engine.runs.store import RunStore
from loratory.ui.gradio_internals import Blocks
from loratory.ui.tabs.shared_runs import LabQueuePart
from loratory.ui.views.lab import render_devices, render_own_disk, render_queue
from tests.invented_runs import InventedRun, a_config, write_run

SECRET = "only for the eyes of ann"


def running(**changes: object) -> QueueEntry:
    now = time.time()
    entry = QueueEntry("ann", "running", "cuda:0, cuda:1", None, now - 720, now + 4000, None, "", "")
    return replace(entry, **changes)


def device_use(name: str, **changes: object) -> DeviceUse:
    return replace(DeviceUse(name, "NVIDIA H100", "ann", "training", time.time() - 720, ()), **changes)


def test_a_device_shows_who_has_it_what_for_and_until_when():
    html = render_devices(
        [device_use("cuda:0"), device_use("cuda:1"), device_use("cuda:2", owner="", purpose=None)], [running()]
    )

    assert html.count("<b>ann</b>, for training") == 2
    assert html.count("for 12 min, about 1 h 06 min left") == 2
    assert "GPU 2" in html
    assert "free" in html


def test_programs_outside_loratory_are_named():
    program = GpuProgram(4711, "eve", 3 * 2**30)
    html = render_devices([device_use("cuda:0", owner="", purpose=None, programs=(program,))], [])

    assert "in use by other programs" in html
    assert "Outside Loratory: process 4711 of eve, 3.0 GiB" in html


def test_an_end_that_is_not_known_is_not_invented():
    html = render_queue([running(expected_end=None)], "bob")
    assert "end not known yet" in html
    assert "left" not in html


def test_the_urgent_run_reports_why_it_goes_first():
    waits = running(state="queued", device="", position=1, since=None, expected_end=None, text="The GPU is in use.")
    html = render_queue([replace(waits, urgent="Goes first: root made it urgent (<b>paper</b>).")], "bob")

    assert "Goes first: root made it urgent (&lt;b&gt;paper&lt;/b&gt;)." in html
    assert "The GPU is in use." in html


def test_only_who_manages_gets_buttons_and_of_own_runs_none_to_look():
    entries = [running(run_id="20261101-000000-000-abcd"), running(owner="root", run_id="20261101-000000-000-beef")]
    assert "data-pick" not in render_queue(entries, "bob")
    html = render_queue(entries, "root", manages=True)
    assert "look:ann/20261101-000000-000-abcd" in html
    assert "look:root" not in html


def test_empty_states_say_what_comes_next():
    assert "No runs" in render_queue([], "bob")
    assert "No device" in render_devices([], [])


@pytest.mark.parametrize(("quota", "text"), [(200.0, "of 200 GB"), (None, "You use 5.0 GB of disk space")])
def test_a_person_sees_the_own_disk_space_and_what_is_free(quota, text):
    limits = LabLimits(disk_gb_per_person=quota)
    html = render_own_disk(DiskUse("ann", {"runs": 4 * 10**9, "uploads": 10**9}), limits, 50 * 10**9)

    assert text in html
    assert "runs 4.0 GB, uploads 1.0 GB" in html
    assert "50.0 GB are free; from 10 GB down, no run starts." in html


@pytest.fixture
def part_of(home, services):
    """Return a maker of the part for a person; a run of ann is at work, and one of bob waits."""
    open_database(home).close()
    at_work = write_run(RunStore(home, "ann"), a_config(run__name=SECRET), InventedRun(state="running", steps=3))
    waits = write_run(RunStore(home, "bob"), a_config(run__name=SECRET), InventedRun(state="queued"))
    place = QueuedRun(owner="bob", run_id=waits.id, reason="device_in_use", cause=f"In use ({SECRET}).")
    snapshot = QueueSnapshot(waiting=(place,), active=(("ann", at_work.id),))
    home.server.mkdir(exist_ok=True)
    (home.server / SNAPSHOT_FILE).write_text(snapshot.model_dump_json())
    board = QueueBoard(home, devices=tuple, programs=lambda _: ())

    def make(name: str) -> LabQueuePart:
        with Blocks():
            return LabQueuePart(replace(services, person=Person(name, "member", 0.0)), board)

    return make, at_work, waits


def test_a_page_asks_and_gets_what_is_new_without_another_persons_words(part_of):
    make, at_work, waits = part_of
    answer = make("cid").news("queue", "")
    assert answer is not None
    places = json.loads(answer)["values"]
    text = " ".join(places.values())  # without the stamp, in which any four digits may stand

    assert set(places) == {"queue-devices", "queue-turns", "queue-disk"}
    assert "ann" in places["queue-turns"]
    assert "Waits for a device that is in use." in places["queue-turns"]
    for secret in (SECRET, at_work.id, waits.id):
        assert secret not in answer
    for short in (at_work.id[-4:], waits.id[-4:]):
        assert not re.search(rf"\b{short}\b", text)


def test_the_owner_reads_the_whole_reason(part_of):
    make, _, waits = part_of
    answer = make("bob").news("queue", "")
    assert answer is not None
    assert f"In use ({SECRET})." in answer
    assert waits.id[-4:] in answer


def test_broken_settings_are_shown_in_place(part_of, home):
    (home.root / "lab.yaml").write_text("limits: [")
    answer = part_of[0]("cid").news("queue", "")
    assert answer is not None
    assert "lab.yaml in the home cannot be used" in answer

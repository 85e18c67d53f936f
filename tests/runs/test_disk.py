"""Disk space of people by day and week, and which models have to stay."""

import subprocess
import sys
from datetime import datetime

import pytest

from loratory.engine.accounts.limits import LabLimits
from loratory.engine.hardware.device_job import models_in_use, note_model
from loratory.engine.models.cache_space import ModelUse
from loratory.engine.models.prepared import DEMO_MODEL_ID
from loratory.engine.models.source import DEMO_HUB_ID
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.disk import DiskSamples, DiskUse, disk_warning, model_uses, models_needed_by
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.usage import Week
from tests.invented_runs import InventedRun, a_config, write_run
from tests.waiting import wait_until

DAY = 86_400.0
SUNDAY = datetime(2026, 11, 22, 12).timestamp()
GB = 10**9


class Clock:
    now = SUNDAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def samples(home, clock):
    return DiskSamples(home, lambda: ("ann", "bob"), clock)


def write_bytes(home, owner, count):
    folder = home.for_person(owner).uploads
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_bytes(bytes(count))


def lines(home):
    return (home.server / "disk.jsonl").read_text().splitlines()


def test_one_sample_of_each_person_and_day_is_kept_and_survives_a_restart(home, clock, samples):
    write_bytes(home, "ann", 100)
    samples.measure()
    samples.measure()
    clock.now += DAY  # Monday
    write_bytes(home, "ann", 300)
    samples.measure()

    assert len(lines(home)) == 4
    again = DiskSamples(home, tuple, clock)
    assert again.by_week() == {
        ("ann", Week(2026, 47)): 100, ("bob", Week(2026, 47)): 0, ("ann", Week(2026, 48)): 300, ("bob", Week(2026, 48)): 0,
    }  # fmt: skip


def test_the_present_week_is_as_measured_last(home, samples):
    samples.measure()
    write_bytes(home, "ann", 500)
    samples.measure()

    assert samples.by_week()["ann", Week(2026, 47)] == 500
    assert samples.newest("ann") == DiskUse("ann", {"uploads": 500})
    assert samples.newest("cid") is None


def test_who_joins_later_that_day_gets_a_sample_of_it(home, clock):
    DiskSamples(home, lambda: ("ann",), clock).measure()
    DiskSamples(home, lambda: ("ann", "bob"), clock).measure()
    assert len(lines(home)) == 2


def test_a_week_is_that_of_its_last_day(home, clock, samples):
    clock.now -= 3 * DAY
    for count in (700, 200):
        write_bytes(home, "ann", count)
        DiskSamples(home, lambda: ("ann",), clock).measure()
        clock.now += DAY

    assert samples.by_week()["ann", Week(2026, 47)] == 200


def test_old_samples_and_torn_lines_go_with_the_next_day(home, clock, samples):
    samples.measure()
    with (home.server / "disk.jsonl").open("a") as file:
        file.write("{torn\n")
    clock.now += 401 * DAY
    samples.measure()

    assert len(lines(home)) == 2
    assert all("2027-12-28" in line for line in lines(home))


LIMITS = LabLimits(disk_gb_per_person=100, free_disk_gb=10)


@pytest.mark.parametrize(
    ("used", "free", "expected"),
    [
        (84, 500, []),
        (85, 500, ["85.0 of 100 GB", "At 100 GB, starts and uploads are refused"]),
        (100, 500, ["100.0 of 100 GB", "so starts and uploads are refused"]),
        (1, 20, []),
        (1, 19, ["19.0 GB free, and below 10 GB no run starts"]),
        (1, 9, ["9.0 GB free, so no run starts"]),
        (90, 9, ["90.0 of 100 GB", "9.0 GB free"]),
    ],
)
def test_a_person_is_warned_before_starts_are_refused(used, free, expected):
    text = disk_warning(DiskUse("ann", {"runs": used * GB}), LIMITS, free * GB)

    assert (text == "") == (expected == [])
    assert all(part in text for part in expected), text


def test_without_limits_nothing_is_warned_of():
    none = LabLimits(disk_gb_per_person=None, free_disk_gb=0)
    assert disk_warning(DiskUse("ann", {"runs": 10**15}), none, 1) == ""


def test_runs_that_wait_or_are_at_work_need_their_model_and_ended_ones_used_it(home):
    source = Provenance(model_source="org/model")
    stores = [RunStore(home, owner, clock=lambda: 1_700_000_000.0) for owner in ("ann", "bob")]
    waiting, ended = stores[0].create(a_config(), source), stores[1].create(a_config(), source)
    ended.folder.write_state(ended.folder.read_state().model_copy(update={"state": "completed"}))

    assert model_uses(home) == {"org/model": ModelUse(1_700_000_000.0, 2, (f"ann/{waiting.id}",))}


def test_a_run_with_a_missing_state_keeps_its_model(home):
    run = RunStore(home, "ann").create(a_config(), Provenance(model_source="org/model"))
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))
    assert model_uses(home)["org/model"].needed_by == ()
    run.folder.state.unlink()

    assert model_uses(home)["org/model"].needed_by == (f"ann/{run.id}",)


@pytest.mark.parametrize("state", ["completed", "queued"])
def test_a_run_whose_model_is_not_from_the_hub_needs_nothing_there(home, state):
    write_run(RunStore(home, "ann"), a_config(), InventedRun(state=state))
    assert model_uses(home) == {}


@pytest.fixture
def process():
    """Start a process and return its identity."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        identity = ProcessIdentity.from_pid(running.pid)
        assert identity is not None
        yield identity
        running.kill()


@pytest.mark.parametrize(
    ("purpose", "name", "hub_id"), [("chat", "org/model", "org/model"), ("export", DEMO_MODEL_ID, DEMO_HUB_ID)]
)
def test_work_keeps_its_model_until_its_process_ends(home, process, purpose, name, hub_id):
    other_process = ProcessIdentity.current().model_copy(update={"start_time": 1.0})
    note_model(home.for_person("bob"), name, purpose, other_process)
    note_model(home.for_person("ann"), name, purpose, process)

    assert model_uses(home) == {hub_id: ModelUse(needed_by=(f"ann/{purpose}",))}
    assert models_needed_by(RunStore(home.for_person("ann"), "ann")) == {hub_id}
    assert models_needed_by(RunStore(home.for_person("bob"), "bob")) == set()

    subprocess.run(["kill", str(process.pid)], check=True)
    wait_until(lambda: not models_in_use(home))
    assert model_uses(home) == {}

"""Disk space by person and week, and the warning before it runs out."""

from datetime import datetime

import pytest

from engine.accounts.limits import LabLimits
from engine.runs.disk import DiskSamples, DiskUse, disk_warning
from engine.runs.usage import Week

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
    folder = home.of(owner).uploads
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
    ("used", "free", "words"),
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
def test_a_person_is_warned_before_starts_are_refused(used, free, words):
    text = disk_warning(DiskUse("ann", {"runs": used * GB}), LIMITS, free * GB)

    assert (text == "") == (words == [])
    assert all(part in text for part in words), text


def test_without_limits_nothing_is_warned_of():
    none = LabLimits(disk_gb_per_person=None, free_disk_gb=0)
    assert disk_warning(DiskUse("ann", {"runs": 10**15}), none, 1) == ""

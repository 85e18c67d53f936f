import os

import pytest

from loratory.engine.runs.activity import ProgressWatch, SilenceLimits
from loratory.engine.runs.run import RunFolder

LIMITS = SilenceLimits(idle_seconds=100, suspended_seconds=50, preparing_idle_seconds=300, busy_seconds=1000)


class FakeWorker:
    """A process whose processor time and suspension the test sets."""

    def __init__(self) -> None:
        self.used = 0.0
        self.suspended = False

    def cpu_seconds(self) -> float:
        return self.used

    def is_suspended(self) -> bool:
        return self.suspended


class Bench:
    def __init__(self, folder: RunFolder) -> None:
        self.now = 0.0
        self.folder = folder
        self.worker = FakeWorker()
        self.watch = ProgressWatch(folder, LIMITS, clock=lambda: self.now)

    def after(self, seconds: float, busy_share: float = 0.0, *, is_training: bool = True):
        """Let time pass in looks of a second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.worker.used += busy_share
            silence = self.watch.update(self.worker, is_training=is_training)
        return silence


@pytest.fixture
def bench(tmp_path):
    return Bench(RunFolder(tmp_path))


def test_an_idle_silent_worker_counts_as_hung_after_the_idle_limit(bench):
    assert not bench.after(99).is_too_long
    silence = bench.after(2)

    assert silence.is_too_long
    assert silence.limit_seconds == 100


def test_a_worker_that_computes_is_given_longer(bench):
    assert not bench.after(900, busy_share=0.9).is_too_long
    assert bench.after(102, busy_share=0.9).is_too_long


def test_a_little_work_now_and_then_is_not_computing(bench):
    assert bench.after(102, busy_share=0.01).is_too_long


def test_every_event_or_line_of_log_starts_the_time_again(bench):
    bench.after(90)
    bench.folder.events.write_text("event\n")
    assert not bench.after(90).is_too_long
    bench.folder.log.write_text("downloading\n")
    assert not bench.after(90).is_too_long
    assert bench.after(20).is_too_long


def test_a_log_that_is_only_touched_is_a_sign_as_well(bench):
    bench.folder.events.write_text("event\n")
    bench.after(90)
    os.utime(bench.folder.events, ns=(1, 1))

    assert not bench.after(90).is_too_long
    assert bench.after(20).is_too_long


def test_before_the_first_step_a_stalled_download_is_borne_longer(bench):
    assert not bench.after(290, is_training=False).is_too_long
    assert bench.after(20, is_training=False).is_too_long


def test_a_suspended_worker_is_known_at_once_and_gets_its_time_back(bench):
    bench.after(40)
    bench.worker.suspended = True
    silence = bench.after(5)
    assert silence.is_suspended
    assert silence.limit_seconds == 50
    assert not silence.is_too_long

    bench.worker.suspended = False
    assert not bench.after(90).is_too_long

    bench.worker.suspended = True
    assert bench.after(60).is_too_long


def test_a_silence_is_unusual_after_a_minute_or_twice_the_longest_before(bench):
    assert not bench.after(60, busy_share=0.9).is_unusual
    assert bench.after(2, busy_share=0.9).is_unusual

    bench.folder.events.write_text("a step")
    assert not bench.after(1, busy_share=0.9).is_unusual
    assert not bench.after(110, busy_share=0.9).is_unusual, "it was silent for a minute before, and then spoke"
    assert bench.after(20, busy_share=0.9).is_unusual


def test_a_silence_that_ends_a_worker_is_unusual_in_any_case(bench):
    bench.after(90)
    bench.folder.events.write_text("a step")

    assert bench.after(102).is_unusual

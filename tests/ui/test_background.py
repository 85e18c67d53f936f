"""Work that continues while no one looks."""

import threading

import pytest

from loratory.engine.chat.contract import JobProgress
from loratory.engine.errors import EngineError, ModelError, RunError, StorageError
from loratory.engine.processes.messages import CancelledRequestError
from loratory.ui.backend.background import UNEXPECTED, BackgroundWork, Cache
from loratory.ui.backend.conversation import run_streaming

WAIT_SECONDS = 300


class AJob:
    """Reports once, then waits until it is let go or stopped."""

    def __init__(self, outcome: object = "result") -> None:
        self.go_on, self.reported = threading.Event(), threading.Event()
        self.stopped = False
        self._outcome = outcome

    def run(self, on_progress):
        on_progress(JobProgress(phase="measuring", message="Half of it.", fraction=0.5))
        self.reported.set()
        assert self.go_on.wait(WAIT_SECONDS)
        if self.stopped:
            raise CancelledRequestError
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def stop(self) -> None:
        self.stopped = True
        self.go_on.set()


def run_to_end(background: BackgroundWork, job: AJob, key: str = "run"):
    job.go_on.set()
    work = background.find(key)
    assert work.done.wait(WAIT_SECONDS)
    return work


def test_every_page_sees_how_far_it_has_come_and_then_the_result():
    background, job = BackgroundWork[str](), AJob()
    results: list[str] = []
    background.start("run", "An export", job, results.append)
    assert job.reported.wait(WAIT_SECONDS)

    work = background.find("run")
    assert (work.is_under_way, work.message, work.fraction) == (True, "Half of it.", 0.5)

    assert run_to_end(background, job).result == "result"
    assert results == ["result"]
    assert background.find("another run") is None


def test_one_at_a_time_under_each_key():
    background, job, other = BackgroundWork[str](), AJob(), AJob()
    background.start("run", "An export", job)

    with pytest.raises(RunError, match="An export is under way"):
        background.start("run", "A push", AJob())
    background.start("another run", "An export", other)

    run_to_end(background, job)
    run_to_end(background, other, "another run")
    again = AJob("second")
    background.start("run", "An export", again)
    assert run_to_end(background, again).result == "second"


def test_stopping_leaves_neither_result_nor_trouble():
    background, job = BackgroundWork[str](), AJob()
    background.start("run", "An export", job)

    background.stop("run")

    work = run_to_end(background, job)
    assert work.was_stopped
    assert work.stopping
    assert work.result is None


@pytest.mark.parametrize(
    ("exception", "expected"),
    [(ModelError("No.", "Choose."), ModelError("No.", "Choose.")), (ValueError("x"), UNEXPECTED)],
)
def test_errors_are_kept_in_two_sentences(exception, expected):
    background, job = BackgroundWork[str](), AJob(exception)
    background.start("run", "An export", job)

    error = run_to_end(background, job).error

    assert isinstance(error, EngineError)
    assert str(error) == str(expected)


def test_a_result_that_cannot_be_kept_is_reported():
    def keep(_result):
        raise StorageError("The disk is full.", "Free some space.")

    background, job = BackgroundWork[str](), AJob()
    background.start("run", "An export", job, keep)

    assert "disk is full" in str(run_to_end(background, job).error)


def test_leaving_stops_everything_that_is_under_way():
    background, jobs = BackgroundWork[str](), [AJob(), AJob()]
    for number, job in enumerate(jobs):
        background.start(str(number), "An export", job)

    background.stop_all(WAIT_SECONDS)  # a server waits for seconds, in which a busy machine may run no other thread

    assert all(job.stopped for job in jobs)
    assert all(background.find(str(number)).was_stopped for number in range(2))


# Messages of streaming work, and results that are made once


def test_what_is_announced_comes_in_order():
    def work(say):
        say("one")
        say("two")

    assert list(run_streaming(work)) == ["one", "two"]


def test_an_error_of_the_work_is_raised_where_it_is_waited_for():
    def work(say):
        say("one")
        raise RunError("It broke.", "Mend it.")

    steps = run_streaming(work)
    assert next(steps) == "one"
    with pytest.raises(RunError, match=r"It broke\."):
        next(steps)


def test_results_are_kept_by_key_and_the_oldest_is_released():
    cache: Cache[str] = Cache(capacity=2)
    calls: list[str] = []

    def draw(value):
        calls.append(value)
        return value

    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: draw(key)) == key

    assert calls == ["a", "b", "c", "b"]

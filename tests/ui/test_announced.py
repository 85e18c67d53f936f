"""Work that reports its progress, and results that are made once."""

import threading

import pytest

from engine.errors import RunError
from ui.backend.background import Cache
from ui.backend.conversation import run_streaming


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
    rendered: Cache[str] = Cache(capacity=2)
    drawn: list[str] = []

    def draw(value):
        drawn.append(value)
        return value

    for key in ("a", "b", "a", "c", "a", "b"):
        assert rendered.get(key, lambda key=key: draw(key)) == key

    assert drawn == ["a", "b", "c", "b"]


def test_pages_may_draw_at_the_same_time():
    rendered: Cache[str] = Cache()
    threads = [threading.Thread(target=rendered.get, args=(n % 3, lambda n=n: str(n % 3))) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert rendered.get(1, lambda: "drawn anew") == "1"

"""Code that computes for too long."""

import signal
import threading
import time

import pytest

from engine.processes.limits import TimeLimitError, time_limit

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGVTALRM"), reason="this platform has no such timer")


def compute_for_ever():
    while True:
        pass


@needs_signals
def test_code_that_never_ends_is_interrupted_and_the_next_is_not():
    with pytest.raises(TimeLimitError), time_limit(0.05):
        compute_for_ever()

    with time_limit(0.05):
        pass
    compute_until = time.process_time() + 0.15
    while time.process_time() < compute_until:
        pass


@needs_signals
def test_waiting_does_not_count():
    with time_limit(0.05):
        time.sleep(0.2)


@needs_signals
def test_errors_of_the_code_pass_through_and_the_handler_of_others_comes_back():
    before = signal.getsignal(signal.SIGVTALRM)

    with pytest.raises(KeyError), time_limit(1):
        raise KeyError("mine")

    assert signal.getsignal(signal.SIGVTALRM) is before


def test_in_another_thread_code_runs_without_a_bound():
    done = []

    def work():
        with time_limit(0.01):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert done == [True]

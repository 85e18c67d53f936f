"""Code that computes for too long."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from loratory.engine.processes.limits import TimeLimitError, peak_process_bytes, time_limit

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
    with time_limit(1.0):  # other threads of this process may compute a little meanwhile
        time.sleep(1.2)


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


SAY_PEAK = """
from loratory.engine.processes.limits import peak_process_bytes
before = peak_process_bytes()
held = b"x" * (64 << 20)
print(before, peak_process_bytes())
del held
print(peak_process_bytes())
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="its kernel only tells a figure in which the starter's may stand")
def test_a_process_counts_its_own_highest_use_and_not_that_of_its_starter():
    memory = b"x" * (512 << 20)

    output = subprocess.run([sys.executable, "-c", SAY_PEAK], capture_output=True, text=True, check=True).stdout

    before, after, later = (int(figure) for figure in output.split())
    assert len(memory) < peak_process_bytes()
    assert before < 200 << 20
    assert 60 << 20 < after - before < 70 << 20
    assert later > after - (1 << 20), "what was given back was needed"  # the kernel counts to within some pages

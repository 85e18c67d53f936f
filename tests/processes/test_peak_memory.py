import subprocess
import sys

import pytest

from engine.processes.limits import peak_process_bytes

SAY_PEAK = """
from engine.processes.limits import peak_process_bytes
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

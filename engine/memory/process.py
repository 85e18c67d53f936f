"""What a training process holds in RAM on a CPU."""

from engine.memory.workload import Workload

MIB = 2**20
_BASELINE = 900 * MIB


def process_on_cpu(allocated_bytes: int, workload: Workload) -> tuple[int, int]:
    """Expected bytes of the process, and the bound."""
    del workload
    expected = _BASELINE + allocated_bytes
    return expected, round(expected * 1.1)

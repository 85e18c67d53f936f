"""From tensors to what a device must have: the allocator's reserve, the process itself, and a bound.

Tensors are predicted to a fraction of a percent; what PyTorch's allocator holds beyond them depends on the order of
large and small requests, and varies from run to run.
"""

from typing import NamedTuple

from engine.hardware.device import Device
from engine.memory.workload import Workload

# With expandable segments, which the worker asks for, blocks grow in place and little is stranded.
_EXPANDABLE = (0.02, 0.06)  # of the allocated bytes: expected beyond them, and at most in nine runs of ten
# Without, blocks of other sizes are stranded between requests of different length.
_FIXED = (0.17, 0.47)
_RESERVE_FLAT = 24 * 2**20
_CONTEXT_MARGIN = 160 * 2**20


class DeviceNeed(NamedTuple):
    """Bytes."""

    reserved_bytes: int  # held by the allocator
    reserved_bound_bytes: int  # nine runs in ten stay below
    expected_bytes: int  # of the process
    needed_bytes: int  # nine runs in ten stay below


def need_on_device(
    allocated_bytes: int,
    workload: Workload,
    device: Device,
    *,
    paged_bytes: int = 0,
    expandable_segments: bool = True,
) -> DeviceNeed:
    """Add to the tensors what surrounds them on this device."""
    if workload.device == "cpu":
        return _on_cpu(allocated_bytes)
    share, most = _EXPANDABLE if expandable_segments else _FIXED
    reserved = round(allocated_bytes * (1 + share)) + _RESERVE_FLAT
    bound = round(allocated_bytes * (1 + most)) + _RESERVE_FLAT
    context = cuda_context_bytes(device.name)
    expected = reserved + paged_bytes + context
    needed = bound + paged_bytes + context + _CONTEXT_MARGIN
    if not expandable_segments:
        # An allocator that runs into the end of the memory gives back what it has stranded.
        room = max(device.total_bytes, round(allocated_bytes * 1.02) + context)
        reserved, bound = min(reserved, room - context), min(bound, room - context)
        expected, needed = min(expected, room), min(needed, room)
    return DeviceNeed(reserved, bound, expected, needed)


def cuda_context_bytes(device_name: str) -> int:
    """What a CUDA process holds before its first tensor, with the kernels that a training step loads.

    It grows with the number of multiprocessors; since CUDA 11.7 kernels are loaded when first used.
    """
    name = device_name.upper()
    if any(part in name for part in ("H100", "H200", "H800", "GH200", "B100", "B200", "A100", "A800")):
        return 520 * 2**20
    if any(part in name for part in ("T4", "V100", "P100", "1080", "2080", "QUADRO")):
        return 200 * 2**20
    return 340 * 2**20


_CPU_BASELINE = 900 * 2**20


def _on_cpu(allocated_bytes: int) -> DeviceNeed:
    expected = _CPU_BASELINE + allocated_bytes
    return DeviceNeed(allocated_bytes, allocated_bytes, expected, round(expected * 1.1))

"""From tensors to what a device must have: the allocator's reserve, the process itself, and a bound.

Tensors are predicted to a fraction of a percent. What PyTorch's allocator holds beyond them depends on the order of
large and small requests; how much that is was found by playing steps through `caching_allocator.py`.
"""

from typing import NamedTuple

from engine.hardware.device import Device
from engine.memory.gpu_names import cuda_context_bytes
from engine.memory.process import process_on_cpu
from engine.memory.tensors_at_peak import TensorsAtPeak
from engine.memory.workload import Workload

MIB = 2**20

# With expandable segments, which the worker asks for: half of a few hundred steps of all methods and sizes, played
# through, stay below the first share of the tensors, nine in ten below the second.
_EXPANDABLE_RESERVE = (0.02, 0.065)
# With segments of fixed size the reserve is played through; real ones lie around that by so much, at most in nine of ten.
_PLAYED_RESERVE_MARGIN = 0.15
# Beyond the allocator: libraries that take memory of their own, and the driver's accounting.
_PROCESS_MARGIN = 200 * MIB
_PLAYED_PROCESS_MARGIN = 0.03
# Nobody has measured runs on Apple's GPU.
_APPLE_MARGIN = 0.25


class DeviceNeed(NamedTuple):
    """Bytes."""

    allocated_bytes: int  # tensors
    reserved_bytes: int  # held by the allocator
    reserved_bound_bytes: int  # nine runs in ten stay below
    expected_bytes: int  # of the process
    needed_bytes: int  # nine runs in ten stay below


def need_on_device(
    tensors: TensorsAtPeak, workload: Workload, device: Device, *, played_reserve_bytes: int | None = None
) -> DeviceNeed:
    """Add to the tensors what surrounds them on this device.

    Args:
        played_reserve_bytes: What the allocator held when the step was played through, for allocators with segments of
            fixed size; without it, expandable segments are assumed.
    """
    allocated_bytes, paged_bytes = tensors.allocated_bytes, tensors.paged_bytes
    if workload.device == "cpu":
        expected, needed = process_on_cpu(tensors, workload)
        needed += tensors.uncertain_bytes
        if device.kind == "mps":
            needed = round(needed * (1 + _APPLE_MARGIN))
        return DeviceNeed(allocated_bytes, allocated_bytes, allocated_bytes, expected, needed)
    context = cuda_context_bytes(device.name)
    if played_reserve_bytes is None:
        expected_share, most = _EXPANDABLE_RESERVE
        reserved = round(allocated_bytes * (1 + expected_share))
        bound = round(allocated_bytes * (1 + most)) + 40 * MIB  # two pages of its pools
        bound += tensors.uncertain_bytes
        expected = reserved + paged_bytes + context
        needed = bound + paged_bytes + context + _PROCESS_MARGIN
        return DeviceNeed(allocated_bytes, reserved, bound, expected, needed)
    # An allocator that runs into the end of the memory gives back what it has stranded.
    room = max(device.total_bytes, round(allocated_bytes * 1.02) + context)
    reserved = min(played_reserve_bytes, room - context)
    bound = min(round(played_reserve_bytes * (1 + _PLAYED_RESERVE_MARGIN)), room - context)
    expected = min(reserved + paged_bytes + context, room)
    needed = bound + round(played_reserve_bytes * _PLAYED_PROCESS_MARGIN) + paged_bytes + context + _PROCESS_MARGIN
    return DeviceNeed(allocated_bytes, reserved, bound, expected, min(needed, room))

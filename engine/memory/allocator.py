"""From tensors to what a device must have: the allocator's reserve, the process itself, and a bound.

Tensors are predicted to a fraction of a percent. What PyTorch's allocator holds beyond them depends on the order of
large and small requests; how much that is was found by playing steps through `caching_allocator.py` in
`tests/benchmarks/published`.
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
# Beyond the allocator: libraries that take memory of their own, and the driver's accounting.
PROCESS_MARGIN = 200 * MIB
# Nobody has measured runs on Apple's GPU.
_APPLE_MARGIN = 0.25


class DeviceNeed(NamedTuple):
    """Bytes."""

    allocated_bytes: int  # tensors
    reserved_bytes: int  # held by the allocator
    reserved_bound_bytes: int  # nine runs in ten stay below
    expected_bytes: int  # of the process
    needed_bytes: int  # nine runs in ten stay below


def need_on_device(tensors: TensorsAtPeak, workload: Workload, device: Device) -> DeviceNeed:
    """Add to the tensors what surrounds them on this device; on CUDA in expandable segments."""
    allocated_bytes, paged_bytes = tensors.allocated_bytes, tensors.paged_bytes
    if workload.device == "cpu":
        expected, needed = process_on_cpu(tensors, workload)
        needed += tensors.uncertain_bytes
        if device.kind == "mps":
            needed = round(needed * (1 + _APPLE_MARGIN))
        return DeviceNeed(allocated_bytes, allocated_bytes, allocated_bytes, expected, needed)
    context = cuda_context_bytes(device.name)
    expected_share, most = _EXPANDABLE_RESERVE
    reserved = round(allocated_bytes * (1 + expected_share))
    bound = round(allocated_bytes * (1 + most)) + 40 * MIB  # two pages of its pools
    bound += tensors.uncertain_bytes
    expected = reserved + paged_bytes + context
    needed = bound + paged_bytes + context + PROCESS_MARGIN
    return DeviceNeed(allocated_bytes, reserved, bound, expected, needed)

"""From tensors to what a device must have: the allocator's reserve, the process itself, and a bound.

Tensors are predicted to a fraction of a percent; what PyTorch's allocator holds beyond them depends on the order of
large and small requests, and varies from run to run.
"""

from typing import NamedTuple

from engine.hardware.device import Device
from engine.memory.workload import Workload

# With expandable segments, which the worker asks for, blocks grow in place and little is stranded.
_RESERVE_SHARE_EXPANDABLE = 0.02
_RESERVE_FLAT = 24 * 2**20
_MARGIN_SHARE_EXPANDABLE = 0.04
_MARGIN_FLAT = 160 * 2**20


class DeviceNeed(NamedTuple):
    """Bytes."""

    reserved_bytes: int  # held by the allocator
    expected_bytes: int  # of the process
    needed_bytes: int  # nine runs in ten stay below


def need_on_device(allocated_bytes: int, workload: Workload, device: Device, *, paged_bytes: int = 0) -> DeviceNeed:
    """Add to the tensors what surrounds them on this device."""
    if workload.device == "cpu":
        return _on_cpu(allocated_bytes)
    reserved = round(allocated_bytes * (1 + _RESERVE_SHARE_EXPANDABLE)) + _RESERVE_FLAT
    expected = reserved + paged_bytes + cuda_context_bytes(device.name)
    needed = expected + round(allocated_bytes * _MARGIN_SHARE_EXPANDABLE) + _MARGIN_FLAT
    return DeviceNeed(reserved, expected, needed)


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
    return DeviceNeed(allocated_bytes, expected, round(expected * 1.1))

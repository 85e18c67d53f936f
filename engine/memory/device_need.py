"""From tensors to what a device must have: the allocator's reserve, the process itself, and a bound.

Tensors are predicted to a fraction of a percent. What PyTorch's allocator holds beyond them depends on the order of
large and small requests; how much that is was found by simulating steps with `caching_allocator.py` in
`tests/benchmarks/published`.
"""

from typing import NamedTuple

from loratory.engine.hardware.device import Capability, Device, similar_device
from loratory.engine.memory.workload import Workload
from loratory.engine.processes.spawn import PRODUCT_CACHE_CAPACITY

MIB = 2**20

# With expandable segments, which the worker asks for: half of a few hundred simulated steps of all methods and
# sizes stay below the first share of the tensors, nine in ten below the second.
_EXPANDABLE_RESERVE = (0.02, 0.065)
# What differs between environments beyond the allocator where kernels are loaded as they are called, as CUDA 12.2 and later do by
# themselves: drivers and CUDA versions, by which contexts of one class of GPU take 256 to 400 MiB (invoke-ai/InvokeAI#9413,
# pytorch/pytorch#109888) where 330 are expected, and modules that libraries load, 23 MiB more than expected on an A100
# (fms-acceleration, a100_80gb_liger.csv).
PROCESS_MARGIN = (70 + 25) * MIB
# Runs on Apple's GPU were never measured.
_APPLE_MARGIN = 0.25

# Python with PyTorch, transformers and PEFT imported (537 MiB, of which 94 are torch's compiler, which transformers 5.24 imports
# whether it is used or not), a tokenizer, rows of a few thousand tokens, threads and their buffers: measured as the peak of whole
# runs with held-out rows and checkpoints, less what the other lines here account for.
PROCESS_ITSELF = 695 * MIB
# Tensors come from the C library, which cuts their holes up for small objects that stay, so a hole does not serve the
# next tensor of its size. What is lost grows with what passes through a layer, more than with what is kept. Where
# casts and integer products bring tensors of many sizes, nearly twice as much is lost.
_HOLES_OF_KEPT = 0.075
_HOLES_OF_LAYER = 1.8
_HOLES_OF_MANY_SIZES = 1.75
# oneDNN compiles a product for each size of a pass, forward and backward, and both its cache and PyTorch's keep it: code,
# tables and buffers of 0.58 MiB each (the heap of runs of ever new lengths, at capacities of 64, 256 and 1,024). The first
# size is part of the process itself.
_COMPILED_PRODUCT = round(0.58 * MIB)
_PRODUCTS_OF_A_SIZE = 40
# 23 runs of 12 to 30 steps on whole datasets were measured from 9% above to 11% below what is expected, 28 of three steps from 5%
# above to 13% below: a heap grows a little after its first steps.
_MARGIN = 0.12


class TensorsAtPeak(NamedTuple):
    """Bytes."""

    allocated_bytes: int  # all tensors that are alive
    passing_bytes: int = 0  # of these, activations and what the loss needs: what comes and goes within a step
    layer_bytes: int = 0  # how high one layer reaches, forward and backward together, above what is alive around it
    paged_bytes: int = 0  # optimizer state in memory that the driver moves
    loading_bytes: int = 0  # on a CPU, pages of weight files that are quantized, and what is made of them
    uncertain_bytes: int = 0  # of the passing ones, how many more there may be where layers are not simulated in detail
    apart_bytes: int = 0  # on a CPU, what answers may take besides the holes that steps leave in the heap


class DeviceNeed(NamedTuple):
    """Bytes."""

    allocated_bytes: int  # tensors
    reserved_bytes: int  # held by the allocator
    reserved_bound_bytes: int  # nine runs in ten stay below
    expected_bytes: int  # of the process
    needed_bytes: int  # nine runs in ten stay below
    is_loading: bool = False  # most is held before the first step


def need_on_device(tensors: TensorsAtPeak, workload: Workload, device: Device) -> DeviceNeed:
    """Add to the tensors what surrounds them on this device; on CUDA in expandable segments."""
    allocated_bytes, paged_bytes = tensors.allocated_bytes, tensors.paged_bytes
    if workload.device == "cpu":
        in_a_step = _step_on_cpu(tensors, workload)
        expected = PROCESS_ITSELF + max(in_a_step, tensors.loading_bytes) + compiled_products_bytes(workload.pass_sizes)
        expected += 2 * tensors.apart_bytes // 3
        needed = round(expected * (1 + _MARGIN)) + tensors.apart_bytes // 3 + tensors.uncertain_bytes
        if device.kind == "mps":
            needed = round(needed * (1 + _APPLE_MARGIN))
        is_loading = tensors.loading_bytes > in_a_step
        return DeviceNeed(allocated_bytes, allocated_bytes, allocated_bytes, expected, needed, is_loading)
    context = cuda_context_bytes(device)
    expected_share, most = _EXPANDABLE_RESERVE
    reserved = round(allocated_bytes * (1 + expected_share))
    # The MiB are two pages of its pools.
    bound = round(allocated_bytes * (1 + most)) + 40 * MIB + tensors.uncertain_bytes
    expected = reserved + paged_bytes + context
    needed = bound + paged_bytes + context + PROCESS_MARGIN
    return DeviceNeed(allocated_bytes, reserved, bound, expected, needed)


def _step_on_cpu(tensors: TensorsAtPeak, workload: Workload) -> int:
    """Return the bytes of tensors in a step, and of the holes between them, in the resident set of the process.

    The constants are those of glibc, and were measured by `python -m tests.benchmarks.memory_cpu_grid`.
    """
    holes = _HOLES_OF_KEPT * tensors.passing_bytes + _HOLES_OF_LAYER * tensors.layer_bytes
    if workload.precision.autocast is not None or workload.base == "int8":
        holes *= _HOLES_OF_MANY_SIZES
    return tensors.allocated_bytes + round(holes)


def compiled_products_bytes(pass_sizes: int) -> int:
    """Return what compiled products of further sizes than the first hold, within the capacity that our workers set."""
    products = min(PRODUCT_CACHE_CAPACITY, _PRODUCTS_OF_A_SIZE * pass_sizes)
    return _COMPILED_PRODUCT * max(0, products - _PRODUCTS_OF_A_SIZE)


def is_hopper(device: Device) -> bool:
    """Return whether it is of the generation for which cuBLAS wants larger workspaces."""
    return _capability(device)[0] == 9


def cuda_context_bytes(device: Device) -> int:
    """Return what a CUDA process holds outside PyTorch's allocator: the context and the kernels of a training step.

    It grows with the number of multiprocessors: 141 MiB on a T4, about 500 MiB on an A100, by published measurements.
    """
    capability = _capability(device)
    if capability == (8, 0) or capability >= (9, 0):
        return 500 * MIB
    return (145 if capability < (8, 0) and capability != (7, 0) else 330) * MIB  # a V100 has twice as many as a T4


def _capability(device: Device) -> Capability:
    """Return a GPU's compute capability; where it is not known, by the name, else that of most cards."""
    known = similar_device(device.name, device.total_bytes / 1e9)
    return device.capability or (known.capability if known else None) or (8, 6)

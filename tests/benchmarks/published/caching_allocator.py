"""PyTorch's caching allocator for CUDA, simulated on sizes: what it holds for a stream of requests.

Requests up to 1 MiB are cut from segments of 2 MiB, larger ones from segments of 20 MiB, and from 10 MiB on each gets a
segment of its own, rounded to 2 MiB. The free block that fits best is used again; what is left over is cut off, except
for less than 1 MiB of a large block. What long-lived tensors cut from the blocks of short-lived ones fragments the memory.

Source: c10/cuda/CUDACachingAllocator.cpp (round_size, get_allocation_size, get_free_block, should_split, try_merge_blocks).
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable

from loratory.engine.memory.persistent import (
    TensorShape,
    TrainableCount,
    optimizer_state_bytes,
    quantized_bytes,
    unquantized_width,
)
from loratory.engine.memory.structure import AdapterTargets, ModelStructure
from loratory.engine.memory.workload import Optimizer, Workload
from tests.benchmarks.published.allocation_trace import StepStream, trace_step

_SMALLEST = 512
_SMALL = 2**20
_SMALL_SEGMENT = 2 * 2**20
_LARGE_SEGMENT = 20 * 2**20
_OWN_SEGMENT_FROM = 10 * 2**20
_ROUND_SEGMENT = 2 * 2**20
_STEPS = 2  # the second one finds the first one's blocks


class Block:
    """A part of a segment, free or in use, between its neighbours."""

    __slots__ = ("address", "before", "behind", "is_free", "is_small", "size")

    def __init__(self, address: int, size: int, *, is_small: bool) -> None:
        self.address = address
        self.size = size
        self.is_small = is_small
        self.is_free = True
        self.before: Block | None = None
        self.behind: Block | None = None


class CachingAllocator:
    """Serves requests, and counts what they take and what it holds.

    Attributes:
        allocated: Bytes of blocks in use.
        reserved: Bytes of all blocks.
        spare_bytes: A block more of each of the two largest sizes of a step. Which requests find a block of their size, and which
            one that another has cut up, hangs on their order, which differs between libraries. One that finds none takes the
            next larger size, and the last of them a new segment: with the logits, their 16-bit block and their 32-bit one.
    """

    def __init__(self) -> None:
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = self.spare_bytes = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}  # by whether blocks are small
        self._next_address = 0

    def take(self, size: int) -> Block:
        """Serve one request."""
        size = max(_SMALLEST, -(-size // _SMALLEST) * _SMALLEST)
        is_small = size <= _SMALL
        free = self._free[is_small]
        position = bisect_left(free, (size, -1))
        block = free.pop(position)[2] if position < len(free) else self._new_segment(size, is_small=is_small)
        rest = block.size - size
        if rest >= _SMALLEST if is_small else rest > _SMALL:
            self._split_block(block, size)
        block.is_free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def give_back(self, block: Block) -> None:
        """Free a block, and merge it with free neighbours."""
        self.allocated -= block.size
        block.is_free = True
        if block.behind is not None and block.behind.is_free:
            self._join(block, block.behind)
        if block.before is not None and block.before.is_free:
            before = block.before
            self._join(before, block, free_block=before)
            block = before
        insort(self._free[block.is_small], (block.size, block.address, block))

    def empty_cache(self) -> None:
        """Return segments that are free from end to end."""
        for is_small, free in self._free.items():
            whole = [entry for entry in free if entry[2].before is None and entry[2].behind is None]
            self.reserved -= sum(size for size, _, _ in whole)
            self._free[is_small] = [entry for entry in free if entry not in whole]

    def _new_segment(self, size: int, *, is_small: bool) -> Block:
        if is_small:
            segment = _SMALL_SEGMENT
        elif size < _OWN_SEGMENT_FROM:
            segment = _LARGE_SEGMENT
        else:
            segment = -(-size // _ROUND_SEGMENT) * _ROUND_SEGMENT
        self._next_address += 1 << 44
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return Block(self._next_address, segment, is_small=is_small)

    def _split_block(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, is_small=block.is_small)
        rest.before, rest.behind = block, block.behind
        if rest.behind is not None:
            rest.behind.before = rest
        block.behind, block.size = rest, size
        insort(self._free[block.is_small], (rest.size, rest.address, rest))

    def _join(self, first: Block, second: Block, *, free_block: Block | None = None) -> None:
        """Make one block of two neighbours; `free_block` (else the second) is in the list of free ones."""
        entry = free_block or second
        free = self._free[first.is_small]
        free.pop(bisect_left(free, (entry.size, entry.address)))
        first.size += second.size
        first.behind = second.behind
        if second.behind is not None:
            second.behind.before = first


def reserve_of_step(
    structure: ModelStructure,
    workload: Workload,
    targets: AdapterTargets,
    counts: TrainableCount,
    workspace_bytes: int,
) -> CachingAllocator:
    """Load a model and train two steps on a fresh allocator."""
    allocator = CachingAllocator()
    _load_weights(allocator, structure, workload)
    if workload.trains_adapter:
        for shape in counts.shapes:
            allocator.take(math.prod(shape) * workload.precision.adapter)
    stream = trace_step(structure, workload, targets)
    segments = {-(-request.size // _ROUND_SEGMENT) * _ROUND_SEGMENT for request in stream.requests}
    allocator.spare_bytes = sum(sorted(segments)[-2:])
    trained_width = workload.precision.adapter if workload.trains_adapter else workload.precision.weights
    for step in range(_STEPS):
        _run_step(allocator, stream, counts, workload.optimizer, trained_width, workspace_bytes if step == 0 else 0)
    return allocator


def _load_weights(allocator: CachingAllocator, structure: ModelStructure, workload: Workload) -> None:
    """One request for each weight; a quantized one is there whole while it is quantized."""
    for module in structure.shape.modules:
        if workload.quantizes(module):
            whole = allocator.take(module.in_features * module.out_features * 2)
            packed = module.in_features * module.out_features
            packed = packed if workload.base == "int8" else packed // 2
            allocator.take(packed)
            allocator.take(max(1, quantized_bytes(module, workload) - packed))
            allocator.give_back(whole)
        elif module.parameters:
            allocator.take(module.parameters * unquantized_width(module, workload))
    if workload.base != "dense":
        allocator.empty_cache()


def _run_step(
    allocator: CachingAllocator,
    stream: StepStream,
    counts: TrainableCount,
    optimizer: Optimizer,
    trained_width: int,
    workspace_bytes: int,
) -> None:
    half = workspace_bytes // 2
    blocks: dict[int, Block] = {}
    if half:
        allocator.take(half)
    for position, request in enumerate(stream.requests):
        if position == stream.after_forward and half:
            allocator.take(half)
        if position == stream.after_backward:
            _step_optimizer(allocator, counts.shapes, optimizer, trained_width, is_first=half > 0)
        if request.size:
            blocks[request.number] = allocator.take(request.size)
        else:
            allocator.give_back(blocks.pop(request.number))
    for block in blocks.values():  # gradients, which are released before the next step
        allocator.give_back(block)


def _step_optimizer(
    allocator: CachingAllocator,
    shapes: Iterable[TensorShape],
    optimizer: Optimizer,
    trained_width: int,
    *,
    is_first: bool,
) -> None:
    if is_first:
        for shape in shapes:
            state = optimizer_state_bytes([shape], optimizer).on_device
            for _ in range(2 if state else 0):
                allocator.take(state // 2)
    if optimizer.kind == "adamw" and optimizer.foreach and not optimizer.fused:
        scratch = [allocator.take(math.prod(shape) * min(trained_width, optimizer.state_width)) for shape in shapes]
        for block in scratch:
            allocator.give_back(block)

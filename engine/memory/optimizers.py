"""What optimizers keep between steps, and what they take while they step."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from engine.memory.workload import Optimizer

TensorShape = tuple[int, ...]

EIGHT_BIT_BLOCK = 256  # elements of 8-bit optimizer state that share a scale
SMALLEST_EIGHT_BIT = 4096  # elements; smaller tensors keep 32-bit state
SMALLEST_PAGED = 100_000  # elements; smaller tensors keep their state on the device


class OptimizerState(NamedTuple):
    """Bytes of optimizer state that stay on the device, and that may leave it."""

    on_device: int
    paged: int


def optimizer_state_bytes(shapes: Iterable[TensorShape], optimizer: Optimizer) -> OptimizerState:
    """State of the optimizer, tensor by tensor, without the numbers that count steps.

    AdamW keeps two tensors of each weight's size, SGD with momentum one. Adafactor keeps one number a row and one a column
    of a matrix, of each matrix where several are stacked, and all of a vector. The 8-bit one keeps a byte an element and a
    32-bit scale for each 256, except for tensors below 4,096 elements; the paged ones hold their state in memory that the
    driver moves, except for tensors below 100,000 elements.

    Args:
        shapes: Of every trained tensor.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101), Dettmers et al. 2022 (arXiv:2110.02861), Shazeer and Stern
    2018 (arXiv:1804.04235), algorithm 4 and `Adafactor` in transformers/optimization.py; `Optimizer8bit.get_state_buffer`
    and `Optimizer2State.init_state` in bitsandbytes/optim/optimizer.py.
    """
    on_device = paged = 0
    for shape in shapes:
        state = state_of_tensor(shape, optimizer)
        if is_paged(shape, optimizer):
            paged += state
        else:
            on_device += state
        if optimizer.master_weights:
            on_device += math.prod(shape) * 4
    return OptimizerState(on_device, paged)


def is_paged(shape: TensorShape, optimizer: Optimizer) -> bool:
    """Whether the state of this tensor may leave the device."""
    return optimizer.paged and math.prod(shape) >= SMALLEST_PAGED


def state_of_tensor(shape: TensorShape, optimizer: Optimizer) -> int:
    """Bytes that the optimizer keeps of one tensor."""
    kind, elements = optimizer.kind, math.prod(shape)
    if kind == "adamw":
        return 2 * elements * optimizer.state_width
    if kind == "adamw_8bit":
        if elements < SMALLEST_EIGHT_BIT:
            return 2 * elements * 4
        return 2 * (elements + -(-elements // EIGHT_BIT_BLOCK) * 4)
    if kind == "sgd_momentum":
        return elements * optimizer.state_width
    if kind == "adafactor":
        return sum(_rows_and_columns(shape)) * 4 if len(shape) > 1 else elements * 4
    return 0


def _rows_and_columns(shape: TensorShape) -> tuple[int, int]:
    """Numbers that Adafactor keeps of a matrix, or of a stack of matrices; none of a vector."""
    return (math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]) if len(shape) > 1 else (0, 0)


def optimizer_scratch_bytes(groups: Iterable[Sequence[TensorShape]], optimizer: Optimizer) -> int:
    """Temporaries while the optimizer steps.

    The foreach kernels take the roots of all second moments of a group at once, or with SGD its decayed gradients; loops
    that take tensor by tensor hold the last one's result until the next one's is there. Fused and 8-bit kernels need none.
    Where 32-bit copies of 16-bit weights are stepped, their gradients are cast all at once.

    Args:
        groups: Shapes of what is trained, in the groups that the optimizer takes one after the other.

    Source: `_multi_tensor_adamw` and `_single_tensor_adamw` in torch/optim/adam.py; torch/optim/sgd.py;
    transformers/optimization.py.
    """
    filled = [group for group in groups if group]
    if not filled:
        return 0
    cast_gradients = sum(math.prod(shape) for group in filled for shape in group) if optimizer.master_weights else 0
    return 4 * (_scratch_elements(filled, optimizer) + cast_gradients)


def _scratch_elements(groups: Sequence[Sequence[TensorShape]], optimizer: Optimizer) -> int:
    """Elements of 32 bits, of narrower ones as many as fill them."""
    if optimizer.kind == "adafactor":
        return _adafactor_scratch([shape for group in groups for shape in group])
    if optimizer.fused or optimizer.kind == "adamw_8bit":
        return 0
    sizes = [[math.prod(shape) for shape in group] for group in groups]
    if optimizer.kind == "adamw":
        # The root of the second moment, divided: both at once, with what the tensor before has left.
        one_by_one = (2 * now + before for group in sizes for before, now in pairwise((0, *group)))
        elements = max(map(sum, sizes)) if optimizer.foreach else max(one_by_one)
        return elements * optimizer.state_width // 4
    if not optimizer.decays:
        return 0
    # What does not decay is the second group.
    return sum(sizes[0]) if optimizer.foreach else max(sizes[0])


def _adafactor_scratch(shapes: Sequence[TensorShape]) -> int:
    """Elements at the highest point of Adafactor's loop.

    A tensor begins with its squares and their sum with a small number, while the update of the one before is alive. Later
    its update is alive with its squares, with one number a row and one a column.
    """
    sizes = [math.prod(shape) for shape in shapes]
    begins = (2 * now + before for before, now in pairwise((0, *sizes)))
    return max(*begins, *(2 * math.prod(shape) + sum(_rows_and_columns(shape)) for shape in shapes))

"""Closed formulas for what does not depend on the order of operations: weights, their scales, and optimizers."""

from collections.abc import Iterable
from typing import NamedTuple

from engine.memory.workload import Optimizer

BLOCK = 64  # weights that share one scale in bitsandbytes' 4-bit formats
NESTED_BLOCK = 256  # scales that share one scale under double quantization


def four_bit_bytes(elements: int, *, double_quant: bool) -> int:
    """Bytes of one 4-bit weight with its scales.

    Half a byte an element and a scale for each block of 64: 4 bytes each, or under double quantization 1 byte each, a
    second-level scale of 4 bytes for each 256 of them and their mean. Asymptotically 0.5625 and 0.51587 bytes.

    Source: Dettmers et al. 2023, section 3 (arXiv:2305.14314); `quantize_4bit` in bitsandbytes/functional.py.
    """
    blocks = _ceil(elements, BLOCK)
    packed = _ceil(elements, 2)
    codebook = 16 * 4
    if not double_quant:
        return packed + blocks * 4 + codebook
    nested_codebook = 256 * 4
    return packed + blocks + _ceil(blocks, NESTED_BLOCK) * 4 + codebook + nested_codebook + 4


def dequantized_scale_bytes(elements: int) -> int:
    """Scales of one double-quantized weight, written out at 32 bits while the weight is in use."""
    return _ceil(elements, BLOCK) * 4


def int8_bytes(in_features: int, out_features: int) -> int:
    """One byte an element and a 32-bit scale for each output row.

    Source: Dettmers et al. 2022, section 3.1 (arXiv:2208.07339); `Int8Params` in bitsandbytes/nn/modules.py.
    """
    return in_features * out_features + out_features * 4


def gptq_bytes(in_features: int, out_features: int, *, group_size: int) -> int:
    """4-bit GPTQ (group_size -1: one group): packed weights; 16-bit scales and packed zero points for each group of inputs; the group's index.

    Source: Frantar et al. 2022 (arXiv:2210.17323); `QuantLinear` of AutoGPTQ: qweight, qzeros, scales, g_idx.
    """
    groups = _ceil(in_features, group_size) if group_size > 0 else 1
    return in_features * out_features // 2 + groups * out_features // 2 + groups * out_features * 2 + in_features * 4


EIGHT_BIT_BLOCK = 256  # elements of 8-bit optimizer state that share a scale
SMALLEST_EIGHT_BIT = 4096  # elements; smaller tensors keep 32-bit state
SMALLEST_PAGED = 100_000  # elements; smaller tensors keep their state on the device


class OptimizerState(NamedTuple):
    """Bytes of optimizer state that stay on the device, and that may leave it."""

    on_device: int
    paged: int


def optimizer_state_bytes(sizes: Iterable[int], optimizer: Optimizer) -> OptimizerState:
    """State of the optimizer, tensor by tensor.

    AdamW keeps two tensors of each weight's size, SGD with momentum one, Adafactor two vectors for a matrix. The 8-bit
    one keeps a byte an element and a 32-bit scale for each 256, except for tensors below 4,096 elements; the paged ones
    hold their state in memory that the driver moves, except for tensors below 100,000 elements.

    Args:
        sizes: Elements of every trained tensor.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101), Dettmers et al. 2022 (arXiv:2110.02861), Shazeer and Stern
    2018 (arXiv:1804.04235); `Optimizer8bit.get_state_buffer` and `Optimizer2State.init_state` in
    bitsandbytes/optim/optimizer.py.
    """
    on_device = paged = 0
    for elements in sizes:
        state = _state_of_one(elements, optimizer)
        if optimizer.paged and elements >= SMALLEST_PAGED:
            paged += state
        else:
            on_device += state
        if optimizer.master_weights:
            on_device += elements * 4
    return OptimizerState(on_device, paged)


def _state_of_one(elements: int, optimizer: Optimizer) -> int:
    kind = optimizer.kind
    if kind == "adamw":
        return 2 * elements * optimizer.state_width
    if kind == "adamw_8bit":
        if elements < SMALLEST_EIGHT_BIT:
            return 2 * elements * 4
        return 2 * (elements + _ceil(elements, EIGHT_BIT_BLOCK) * 4)
    if kind == "sgd_momentum":
        return elements * optimizer.state_width
    if kind == "adafactor":
        # One number a row and one a column: for a square matrix twice the root, and never more than that by much.
        return int(2 * elements**0.5) * 4 * 2
    return 0


def optimizer_scratch_bytes(sizes: Iterable[int], optimizer: Optimizer) -> int:
    """Temporaries while the optimizer steps.

    The foreach kernels take the roots of all second moments at once, the plain loop those of one weight, twice; fused
    and 8-bit kernels need none. Adafactor computes one weight's update at 32 bits, in three tensors. Where 32-bit
    copies of 16-bit weights are stepped, their gradients are cast all at once.

    Args:
        sizes: Elements of every trained tensor.

    Source: `_multi_tensor_adamw` and `_single_tensor_adamw` in torch/optim/adam.py; transformers/optimization.py.
    """
    sizes = tuple(sizes)
    if not sizes:
        return 0
    cast_gradients = sum(sizes) * 4 if optimizer.master_weights else 0
    if optimizer.kind == "adafactor":
        return 3 * max(sizes) * 4 + cast_gradients
    if optimizer.kind != "adamw" or optimizer.fused:
        return cast_gradients
    if optimizer.foreach:
        return sum(sizes) * optimizer.state_width + cast_gradients
    return 2 * max(sizes) * optimizer.state_width + cast_gradients


def _ceil(count: int, divisor: int) -> int:
    return -(-count // divisor)

"""Closed formulas for what does not depend on the order of operations: weights, and their scales."""

BLOCK = 64  # weights that share one scale in bitsandbytes' 4-bit formats
NESTED_BLOCK = 256  # scales that share one scale under double quantization


def four_bit_bytes(elements: int, *, double_quant: bool) -> int:
    """Bytes of one 4-bit weight with its scales.

    Half a byte an element and a scale for each block of 64: 4 bytes each, or under double quantization 1 byte each, a
    second-level scale of 4 bytes for each 256 of them and their mean. Asymptotically 0.5625 and 0.51587 bytes.

    Source: Dettmers et al. 2023, section 3 (arXiv:2305.14314); `quantize_4bit` in bitsandbytes/functional.py.
    """
    blocks = ceil_divide(elements, BLOCK)
    packed = ceil_divide(elements, 2)
    codebook = 16 * 4
    if not double_quant:
        return packed + blocks * 4 + codebook
    nested_codebook = 256 * 4
    return packed + blocks + ceil_divide(blocks, NESTED_BLOCK) * 4 + codebook + nested_codebook + 4


def dequantized_scale_bytes(elements: int) -> int:
    """Scales of one double-quantized weight, written out at 32 bits while the weight is in use."""
    return ceil_divide(elements, BLOCK) * 4


def int8_bytes(in_features: int, out_features: int) -> int:
    """One byte an element and a 32-bit scale for each output row.

    Source: Dettmers et al. 2022, section 3.1 (arXiv:2208.07339); `Int8Params` in bitsandbytes/nn/modules.py.
    """
    return in_features * out_features + out_features * 4


def gptq_bytes(in_features: int, out_features: int, *, group_size: int) -> int:
    """4-bit GPTQ (group_size -1: one group): packed weights; 16-bit scales and packed zero points for each group of inputs; the group's index.

    Source: Frantar et al. 2022 (arXiv:2210.17323); `QuantLinear` of AutoGPTQ: qweight, qzeros, scales, g_idx.
    """
    groups = ceil_divide(in_features, group_size) if group_size > 0 else 1
    return in_features * out_features // 2 + groups * out_features // 2 + groups * out_features * 2 + in_features * 4


def ceil_divide(count: int, divisor: int) -> int:
    return -(-count // divisor)

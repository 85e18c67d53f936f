"""What the name of a GPU tells: its memory, its generation, and what a process on it takes beside its tensors."""

import re
from collections.abc import Mapping

GIB = 2**30

# GiB that programs see of each model's memory; several where it was sold with several. Source: data sheets, less what
# error correction and the driver keep.
_MEMORY_GIB: Mapping[str, tuple[float, ...]] = {
    "T4": (14.56,), "P4": (7.4,), "P40": (22.4,), "P100": (11.9, 15.9), "V100": (15.77, 31.74),
    "L4": (22.05,), "L40": (44.4,), "L40S": (44.4,),
    "A2": (14.6,), "A10": (22.0,), "A10G": (22.0,), "A16": (14.6,), "A30": (23.6,), "A40": (44.4,),
    "A100": (39.4, 79.2), "A800": (39.4, 79.2),
    "H20": (95.6, 139.8), "H100": (79.2, 93.1), "H800": (79.2,), "H200": (139.8,), "GH200": (94.5, 139.8),
    "B100": (178.4,), "B200": (178.4,), "GB200": (184.0,), "B300": (267.7,), "GB300": (275.0,),
    "A2000": (5.8, 11.7), "A4000": (15.7,), "A4500": (19.7,), "A5000": (23.6,), "A5500": (23.6,), "A6000": (47.4,),
    "4000": (7.8, 19.7), "5000": (15.7, 31.5), "6000": (23.6, 47.4, 95.0), "8000": (47.4,),
    "1060": (2.9, 5.9), "1070": (7.9,), "1080": (7.9, 10.9), "1650": (3.8,), "1660": (5.8,),
    "2060": (5.8, 11.8), "2070": (7.8,), "2080": (7.8, 10.8),
    "3050": (5.8, 7.8), "3060": (7.8, 11.8), "3070": (7.8,), "3080": (9.8, 15.7), "3090": (23.6,),
    "4050": (5.8,), "4060": (7.7, 15.6), "4070": (11.7, 15.6), "4080": (11.7, 15.7), "4090": (15.6, 23.5),
    "5060": (7.9, 15.5), "5070": (11.5, 15.5), "5080": (15.5,), "5090": (23.5, 31.4),
}  # fmt: skip
# Of a size that is written in a name, at most.
_VISIBLE_SHARE = 0.99
_SAME_SIZE = 0.12

_BEFORE_AMPERE = frozenset(
    "T4 P4 P40 P100 V100 1060 1070 1080 1650 1660 2060 2070 2080 8000 TITAN TURING QUADRO".split()
)
_HOPPER = frozenset("H100 H200 H800 H20 GH200".split())
# By the number of multiprocessors: 141 MiB on a T4, about 500 MiB on an A100, by published measurements.
_LARGE_CONTEXT = frozenset("H100 H200 H800 H20 GH200 B100 B200 GB200 B300 GB300 A100 A800 5090".split())
_SMALL_CONTEXT = frozenset("T4 P4 P40 P100 1060 1070 1080 1650 1660 2060 2070 2080 QUADRO".split())


def words_of_gpu(name: str) -> frozenset[str]:
    """The parts of a GPU's name, in capitals: "NVIDIA A100-SXM4-80GB" → NVIDIA, A100, SXM4, 80GB.

    What is written together is taken apart: "RTX4090Ti" → RTX, 4090, TI.
    """
    apart = re.sub(r"NVIDIA|TESLA|GEFORCE|QUADRO|RTX|GTX", r" \g<0> ", name.upper())
    apart = re.sub(r"(?<=\d{4})(TI|SUPER|D|LAPTOP|MOBILE)\b", r" \1", apart)
    return frozenset(re.findall(r"[A-Z0-9]+", apart))


def memory_of_gpu(name: str) -> int | None:
    """Bytes that programs see of a GPU's memory; the most that it was ever sold with, unless the name says how much.

    Returns:
        None where neither the model is known nor a size is given.
    """
    known = next((sizes for word in words_of_gpu(name) if (sizes := _MEMORY_GIB.get(word))), ())
    said = re.search(r"(\d+)\s*GI?B", name.upper())
    if said is None:
        return round(max(known) * GIB) if known else None
    like = [size for size in known if abs(size / int(said[1]) - 1) <= _SAME_SIZE]
    nearest = min(like, key=lambda size: abs(size - int(said[1])), default=int(said[1]) * _VISIBLE_SHARE)
    return round(nearest * GIB)


def is_before_ampere(name: str) -> bool:
    """Whether it has neither bfloat16 nor flash attention."""
    words = words_of_gpu(name)
    return not _BEFORE_AMPERE.isdisjoint(words) and "ADA" not in words


def is_hopper(name: str) -> bool:
    """Whether it is of the generation for which cuBLAS wants larger workspaces."""
    return not _HOPPER.isdisjoint(words_of_gpu(name))


def cuda_context_bytes(name: str) -> int:
    """What a CUDA process holds beside PyTorch's allocator: the context and the kernels that a training step loads."""
    words = words_of_gpu(name)
    if not _LARGE_CONTEXT.isdisjoint(words):
        return 500 * 2**20
    return (145 if not _SMALL_CONTEXT.isdisjoint(words) else 330) * 2**20

"""What a GPU's name reveals: its generation, and what a process on it holds besides tensors."""

import re

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


def is_hopper(name: str) -> bool:
    """Whether it is of the generation for which cuBLAS wants larger workspaces."""
    return not _HOPPER.isdisjoint(words_of_gpu(name))


def cuda_context_bytes(name: str) -> int:
    """What a CUDA process holds beside PyTorch's allocator: the context and the kernels that a training step loads."""
    words = words_of_gpu(name)
    if not _LARGE_CONTEXT.isdisjoint(words):
        return 500 * 2**20
    return (145 if not _SMALL_CONTEXT.isdisjoint(words) else 330) * 2**20

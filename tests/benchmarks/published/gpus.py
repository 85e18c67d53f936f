"""Memory and generation of a GPU, from the name that a published measurement gives.

`gpu_memory.json` has, for each model, the GiB that programs see; several where it was sold with several sizes. Source: data
sheets, less what error correction and the driver reserve.
"""

import json
import re
from functools import cache
from pathlib import Path

GIB = 2**30
# Programs see at most this share of a size that is part of a name.
_VISIBLE_SHARE = 0.99
_SAME_SIZE = 0.12
_BEFORE_AMPERE = frozenset(
    "T4 P4 P40 P100 V100 1060 1070 1080 1650 1660 2060 2070 2080 8000 TITAN TURING QUADRO".split()
)


def memory_of_gpu(name: str) -> int | None:
    """Bytes that programs see of a GPU's memory; the most that it was ever sold with, unless the name reports how much.

    Returns:
        None where neither the model is known nor a size is given.
    """
    table = _memory_table()
    known = next((sizes for word in gpu_name_parts(name) if (sizes := table.get(word))), ())
    match = re.search(r"(\d+)\s*GI?B", name.upper())
    if match is None:
        return round(max(known) * GIB) if known else None
    like = [size for size in known if abs(size / int(match[1]) - 1) <= _SAME_SIZE]
    nearest = min(like, key=lambda size: abs(size - int(match[1])), default=int(match[1]) * _VISIBLE_SHARE)
    return round(nearest * GIB)


def is_before_ampere(name: str) -> bool:
    """Return whether it has neither bfloat16 nor flash attention."""
    name_parts = gpu_name_parts(name)
    return not _BEFORE_AMPERE.isdisjoint(name_parts) and "ADA" not in name_parts


def gpu_name_parts(name: str) -> frozenset[str]:
    """Split a GPU's name into its parts, in capitals: "NVIDIA A100-SXM4-80GB" → NVIDIA, A100, SXM4, 80GB.

    What is written together is taken apart: "RTX4090Ti" → RTX, 4090, TI.
    """
    apart = re.sub(r"NVIDIA|TESLA|GEFORCE|QUADRO|RTX|GTX", r" \g<0> ", name.upper())
    apart = re.sub(r"(?<=\d{4})(TI|SUPER|D|LAPTOP|MOBILE)\b", r" \1", apart)
    return frozenset(re.findall(r"[A-Z0-9]+", apart))


@cache
def _memory_table() -> dict[str, list[float]]:
    table: dict[str, list[float]] = json.loads(Path(__file__).with_name("gpu_memory.json").read_text(encoding="utf-8"))
    return table

"""Writes safetensors files tensor by tensor, so a model of any size fits through a small memory."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from engine.models.folder import SINGLE_WEIGHTS, WEIGHTS_INDEX

# Source: the safetensors format, https://github.com/huggingface/safetensors#format.
DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_ALIGNMENT_BYTES = 8


class TensorPlan(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        element_bytes: int = self.dtype.itemsize
        return element_bytes * math.prod(self.shape)


@dataclass(frozen=True)
class ShardWriter:
    """Writes tensors into one file or several, as transformers' `save_pretrained` lays them out.

    Args:
        folder: Where to; exists.
        max_shard_bytes: Files are no larger than this, unless a single tensor is.
        on_bytes: Gets the bytes written since its last call; may raise to stop.
    """

    folder: Path
    max_shard_bytes: int
    on_bytes: Callable[[int], None]

    def write(self, tensors: Sequence[TensorPlan], read: Callable[[str], torch.Tensor]) -> None:
        """Write all tensors; never holds more than one of them.

        Args:
            tensors: In the order in which they are cheap to read.
            read: Gives the tensor of a name, in the planned dtype and shape.

        Raises:
            OSError: If the disk is full or fails.
        """
        shards = divide(tensors, self.max_shard_bytes)
        if len(shards) == 1:
            self._write_file(self.folder / SINGLE_WEIGHTS, shards[0], read)
            return
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._write_file(self.folder / name, shard, read)
            places |= {tensor.name: name for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors)}, "weight_map": places}
        (self.folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _write_file(self, path: Path, tensors: Sequence[TensorPlan], read: Callable[[str], torch.Tensor]) -> None:
        with path.open("wb") as file:
            file.write(header_bytes(tensors))
            for planned in tensors:
                tensor = read(planned.name).detach().to("cpu").contiguous()
                if tensor.dtype != planned.dtype or tuple(tensor.shape) != planned.shape:
                    raise ValueError(f"{planned.name} is {tensor.dtype} {tuple(tensor.shape)}, planned {planned}")
                file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
                self.on_bytes(planned.size_bytes)
            file.flush()
            os.fsync(file.fileno())


def divide(tensors: Sequence[TensorPlan], max_shard_bytes: int) -> list[list[TensorPlan]]:
    """Fill one file after the other, in the given order."""
    shards: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    # Wider elements first, so every tensor begins at a multiple of its element's size.
    return [sorted(shard, key=lambda tensor: -tensor.dtype.itemsize) for shard in shards]


def header_bytes(tensors: Sequence[TensorPlan]) -> bytes:
    """Return what comes before the data: its length in eight bytes, then JSON, padded with spaces."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.size_bytes
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text

"""Safetensors files, read and written tensor by tensor, so a model of any size fits through a small memory."""

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from transformers.modeling_utils import str_to_torch_dtype

from engine.errors import ModelError
from engine.models.folder import WEIGHTS_INDEX, read_safetensors_header, weight_files

_DTYPE_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}
FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


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
class BaseFiles:
    """The weight files of a base model, read one tensor at a time."""

    folder: Path
    places: Mapping[str, Path]  # file of each tensor, in the order of the files
    plans: Mapping[str, TensorPlan]

    @classmethod
    def open(cls, folder: Path, name: str) -> "BaseFiles":
        """List what the files hold.

        Raises:
            ModelError: If a file is damaged, or holds what cannot be merged into.
        """
        places: dict[str, Path] = {}
        plans: dict[str, TensorPlan] = {}
        for file in weight_files(folder, name):
            for record in read_safetensors_header(file, name):
                if record.dtype not in str_to_torch_dtype:
                    raise ModelError(
                        f"{name} holds {record.dtype} weights, which cannot be merged into.",
                        "Export the adapter, or train on a model in 16 or 32 bits.",
                    )
                places[record.name] = file
                plans[record.name] = TensorPlan(record.name, str_to_torch_dtype[record.dtype], record.shape)
        return cls(folder, places, plans)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        with safe_open(self.places[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    @property
    def dtype(self) -> torch.dtype:
        """In which precision most of the weights are."""
        sizes: Counter[torch.dtype] = Counter()
        for plan in self.plans.values():
            if plan.dtype in FLOATS:
                sizes[plan.dtype] += plan.size_bytes
        return sizes.most_common(1)[0][0]


def write_shards(
    folder: Path,
    tensors: Sequence[TensorPlan],
    read: Callable[[str], torch.Tensor],
    max_shard_bytes: int,
    on_bytes: Callable[[int], None],
) -> None:
    """Write tensors into one file or several, as `save_pretrained` lays them out; never holds more than one of them.

    Args:
        tensors: In the order in which they are cheap to read.
        read: Gives the tensor of a name, in the planned dtype and shape.
        max_shard_bytes: Files are no larger than this, unless a single tensor is.
        on_bytes: Gets the bytes written since its last call; may raise to stop.

    Raises:
        OSError: If the disk is full or fails.
    """
    plans = {tensor.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        plans,
        get_storage_size=lambda plan: plan.size_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        # Wider elements first, so every tensor begins at a multiple of its element's size.
        shard = sorted((plans[name] for name in names), key=lambda plan: -plan.dtype.itemsize)
        _write_file(folder / file, shard, read, on_bytes)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_file(
    path: Path, tensors: Sequence[TensorPlan], read: Callable[[str], torch.Tensor], on_bytes: Callable[[int], None]
) -> None:
    with path.open("wb") as file:
        file.write(_header_bytes(tensors))
        for planned in tensors:
            tensor = read(planned.name).detach().to("cpu").contiguous()
            if tensor.dtype != planned.dtype or tuple(tensor.shape) != planned.shape:
                raise ValueError(f"{planned.name} is {tensor.dtype} {tuple(tensor.shape)}, planned {planned}")
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            on_bytes(planned.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _header_bytes(tensors: Sequence[TensorPlan]) -> bytes:
    """Return what comes before the data: its length in eight bytes, then JSON, padded with spaces.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets = itertools.accumulate((tensor.size_bytes for tensor in tensors), initial=0)
    for tensor, place in zip(tensors, itertools.pairwise(offsets), strict=True):
        header[tensor.name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

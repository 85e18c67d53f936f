"""Optimizer, schedule and random numbers as files that can be read without running anything: safetensors and JSON."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

_STRUCTURE = "structure"  # key of the JSON in a file's metadata


def save_optimizer(optimizer: Any, path: Path) -> None:
    """Write an optimizer's state; any optimizer whose state is made of tensors and plain values."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    _save(path, tensors, {"plain": plain, "param_groups": state["param_groups"]})


def load_optimizer(optimizer: Any, path: Path) -> None:
    """Give an optimizer over the same parameters the state that was saved.

    Raises:
        ValueError: If the parameters differ.
    """
    tensors, structure = _load(path)
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
    for index, values in structure["plain"].items():
        state.setdefault(int(index), {}).update(values)
    optimizer.load_state_dict({"state": state, "param_groups": structure["param_groups"]})


def save_plain(values: dict[str, Any], path: Path) -> None:
    """Write what is made of numbers, texts, lists and mappings."""
    path.write_text(json.dumps(values, allow_nan=True), encoding="utf-8")


def load_plain(path: Path) -> dict[str, Any]:
    """Read what `save_plain` wrote."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def save_random_state(path: Path) -> None:
    """Write the state of every generator that training draws from."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, next_gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda/{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    structure = {
        "python": [version, list(internal), next_gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(gauss)],
    }
    _save(path, tensors, structure)


def load_random_state(path: Path) -> None:
    """Give every generator the state that was saved."""
    tensors, structure = _load(path)
    version, internal, next_gauss = structure["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, position, has_gauss, gauss = structure["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(tensors["torch"])
    devices = sorted(key for key in tensors if key.startswith("cuda/"))
    if torch.cuda.is_available() and len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensors[f"cuda/{index}"] for index in range(len(devices))])


def _save(path: Path, tensors: dict[str, torch.Tensor], structure: dict[str, Any]) -> None:
    seen: set[int] = set()
    ready: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        # Some optimizers share one lookup table among all parameters, which the format does not allow.
        ready[name] = held.clone() if held.data_ptr() in seen else held
        seen.add(held.data_ptr())
    save_file(ready, path, metadata={_STRUCTURE: json.dumps(structure)})


def _load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        structure: dict[str, Any] = json.loads(file.metadata()[_STRUCTURE])
    return tensors, structure

"""Optimizer, schedule and random numbers as files that can be read without running anything: safetensors and JSON."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

_STRUCTURE = "structure"  # key of the JSON in a file's metadata
_PAGED_STATE = frozenset({"state1", "state2"})  # Optimizer2State.init_state, bitsandbytes/optim/optimizer.py

OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULER_FILE = "scheduler.json"
RANDOM_FILE = "random-{rank}.safetensors"  # one for each process
SCALER_FILE = "scaler.json"
PROGRESS_FILE = "progress.json"


def save_optimizer(optimizer: Any, path: Path) -> None:
    """Write an optimizer's state; any optimizer whose state is made of tensors and plain values, however nested."""
    save_nested(optimizer.state_dict(), path)


def load_optimizer(optimizer: Any, path: Path) -> None:
    """Give an optimizer over the same parameters the state that was saved.

    Raises:
        ValueError: If the parameters differ.
    """
    state = load_nested(path)
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    if getattr(inner, "is_paged", False):
        _load_paged(inner, state)
    else:
        optimizer.load_state_dict(state)


def save_nested(values: Any, path: Path) -> None:
    """Write tensors and plain values, nested in mappings and lists."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _without_tensors(values, tensors)
    _save(path, tensors, structure)


def load_nested(path: Path) -> Any:
    """Read what `save_nested` wrote."""
    tensors, structure = _load(path)
    return _with_tensors(structure, tensors)


def _load_paged(optimizer: Any, state: Any) -> None:
    """The same for bitsandbytes' paged optimizers, whose own way makes all state tensors of the device.

    A run that needs paging has no room for them, not even for a moment: large ones are copied into paged memory, which the
    optimizer makes as it does at its first step.
    """
    optimizer.load_state_dict(state, move_to_device=False)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if name in _PAGED_STATE:
                buffer = optimizer.get_state_buffer(parameter, dtype=value.dtype)
                values[name] = buffer.copy_(value.view_as(buffer))
            elif isinstance(value, torch.Tensor):
                values[name] = value.to(parameter.device)


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON of a nested state: tensors are put aside under a number, mappings keep keys that are not strings."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _without_tensors(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(entry, tensors) for entry in value]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(entry, tensors) for entry in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _with_tensors(entry, tensors) for key, entry in value["mapping"]}
    return value


def save_plain(values: dict[str, Any], path: Path) -> None:
    """Write what is made of numbers, texts, lists and mappings."""
    path.write_text(json.dumps(values, allow_nan=True), encoding="utf-8")


def load_plain(path: Path) -> dict[str, Any]:
    """Read what `save_plain` wrote."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def random_state() -> bytes:
    """The present state of every generator that this process draws from: the content of a file of random numbers."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, next_gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda/{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    structure = {
        "python": [version, list(internal), next_gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(gauss)],
    }
    content: bytes = save(tensors, metadata={_STRUCTURE: json.dumps(structure)})
    return content


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
    if torch.backends.mps.is_available() and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])


def _save(path: Path, tensors: dict[str, torch.Tensor], structure: Any) -> None:
    seen: set[int] = set()
    ready: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        # Some optimizers share one lookup table among all parameters, which the format does not allow.
        ready[name] = held.clone() if held.data_ptr() in seen else held
        seen.add(held.data_ptr())
    save_file(ready, path, metadata={_STRUCTURE: json.dumps(structure)})


def _load(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        structure = json.loads(file.metadata()[_STRUCTURE])
    return tensors, structure

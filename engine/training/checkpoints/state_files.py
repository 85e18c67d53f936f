"""What a checkpoint holds, as safetensors and JSON, which can be read without running anything.

Trained weights are an adapter or a model as PEFT and transformers load it, with its tokenizer; the rest are optimizer,
schedule and random numbers.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from engine.runs.checkpoints import ADAPTER_SUBFOLDER
from engine.training.methods.registry import trainer_of_model

_STRUCTURE = "structure"  # key of the JSON in a file's metadata
_PAGED_STATE = frozenset({"state1", "state2"})  # Optimizer2State.init_state, bitsandbytes/optim/optimizer.py

OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULER_FILE = "scheduler.json"
RANDOM_FILE = "random-{rank}.safetensors"  # one for each process
SCALER_FILE = "scaler.json"
PROGRESS_FILE = "progress.json"
_ADAPTER_CONFIG = "adapter_config.json"
_METHOD_STATE = "method.safetensors"  # what the method keeps besides the weights
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MODEL_WEIGHTS = "*.safetensors"


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


def save_trained(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `adapter/` below a checkpoint: the adapter (or, for full fine-tuning, the model) and its tokenizer.

    Args:
        model: The trained model.
        tokenizer: With the frozen chat template.
        folder: The checkpoint.
        dtype: Rounds a fully trained model; None keeps the float32 that training continues from.
    """
    save_adapter(model, tokenizer, folder / ADAPTER_SUBFOLDER, dtype)
    state = trainer_of_model(model).state(model)
    if state:
        save_nested(state, folder / _METHOD_STATE)


def save_adapter(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write what was trained into one folder, as PEFT's and transformers' `from_pretrained` take it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_adapter(model):
        # PEFT would ask the Hub whether the vocabulary grew. It cannot have: embeddings that are trained are either
        # adapted or among modules_to_save, and both are saved.
        with trainer_of_model(model).saving(model):
            model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    elif dtype is None:
        model.save_pretrained(str(folder))
    else:
        rounded = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        config_dtype = model.config.dtype
        model.config.dtype = dtype
        try:
            model.save_pretrained(str(folder), state_dict=rounded)
        finally:
            model.config.dtype = config_dtype
    tokenizer.save_pretrained(str(folder))


def load_trained(model: Any, checkpoint: Path) -> None:
    """Give a model of the same make the weights of a checkpoint, bit by bit.

    Raises:
        ValueError: If the checkpoint lacks something that is trained.
    """
    folder = checkpoint / ADAPTER_SUBFOLDER
    if _is_adapter(model):
        trainer, config = trainer_of_model(model), load_plain(folder / _ADAPTER_CONFIG)
        trainer.load_weights(model, load_file(folder / _ADAPTER_WEIGHTS), config)
        if (checkpoint / _METHOD_STATE).is_file():
            trainer.load_state(model, load_nested(checkpoint / _METHOD_STATE))
        return
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(_MODEL_WEIGHTS)):
        weights |= load_file(path)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    lost = [name for name in missing if name not in tied]
    if lost or unexpected:
        raise ValueError(f"the checkpoint does not fit the model: {(lost or unexpected)[0]}")


def _is_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config")


def parameters_line(trainable: int, total: int) -> str:
    """Return the line that PEFT prints, for the log."""
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}"


def count_parameters(model: Any) -> tuple[int, int]:
    """Trainable parameters and all of them, packed weights counted as what they hold, as PEFT counts."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total

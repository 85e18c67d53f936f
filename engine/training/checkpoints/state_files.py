"""What a checkpoint holds, as safetensors and JSON, which can be read without running anything.

Trained weights are an adapter or a model as PEFT and transformers load it, with its tokenizer; the rest are optimizer,
schedule and random numbers. A run may also start from the weights of an earlier adapter alone.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from loratory.engine.config.methods.lora import PLAIN_LORA_FIX, initialization_from_base
from loratory.engine.config.methods.registry import method_of_peft_type, tensor_marks
from loratory.engine.errors import ConfigError, ModelError, Problem
from loratory.engine.models.folder import read_config
from loratory.engine.runs.checkpoints import ADAPTER_SUBFOLDER
from loratory.engine.runs.provenance import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loratory.engine.training.build import train_in_float32
from loratory.engine.training.distribution import sharded_optimizer_state, sharded_weights
from loratory.engine.training.failure import is_out_of_memory
from loratory.engine.training.methods.registry import trainer_of_model

_STRUCTURE = "structure"  # key of the JSON in a file's metadata
_PAGED_STATE = frozenset({"state1", "state2"})  # Optimizer2State.init_state, bitsandbytes/optim/optimizer.py

OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULER_FILE = "scheduler.json"
RANDOM_FILE = "random-{rank}.safetensors"  # one for each process
SCALER_FILE = "scaler.json"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class GatheredState:
    """What a checkpoint needs of all processes."""

    random: list[bytes]  # states of random numbers, by rank
    weights: dict[str, torch.Tensor] | None = None  # what is trained, whole; None where the model has it so
    optimizer: Any = None  # its state, whole; None where the optimizer has it so


def trained_bytes(model: Any, optimizer: Any) -> tuple[int, int]:
    """Return the bytes of the trained weights and of the optimizer's state, of which a checkpoint mostly consists."""
    weights = [parameter.nbytes for parameter in model.parameters() if parameter.requires_grad]
    values = (value for state in optimizer.state.values() for value in state.values())
    states = [value.nbytes for value in values if isinstance(value, torch.Tensor)]
    return sum(weights), sum(states)


_METHOD_STATE = "method.safetensors"  # the method's state in addition to the weights


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
        optimizer.load_state_dict(sharded_optimizer_state(inner, state))


def save_nested(values: Any, path: Path) -> None:
    """Write tensors and plain values, nested in mappings and lists, such as an optimizer's state."""
    tensors, metadata = _as_file(values)
    save_file(tensors, path, metadata=metadata)


def load_nested(path: Path) -> Any:
    """Read what `save_nested` wrote."""
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        structure = json.loads(file.metadata()[_STRUCTURE])
    return _with_tensors(structure, tensors)


def _as_file(values: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file that holds nested values."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _without_tensors(values, tensors)
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        on_cpu = tensor.detach().cpu().contiguous()
        # Some optimizers share one lookup table among all parameters, which the format does not allow.
        tensors[name] = on_cpu.clone() if on_cpu.data_ptr() in addresses else on_cpu
        addresses.add(on_cpu.data_ptr())
    return tensors, {_STRUCTURE: json.dumps(structure)}


def _load_paged(optimizer: Any, state: Any) -> None:
    """Load the state of one of bitsandbytes' paged optimizers, whose own way puts all state tensors on the device.

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
    """Return nested values as JSON: tensors are moved to `tensors` under a number, mappings keep keys that are not strings."""
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
    """Return the state of every random generator of this process, as the content of a file."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    numbers = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    tensors, metadata = _as_file(
        {
            "python": random.getstate(),
            "numpy": [str(kind), numbers, int(position), int(has_gauss), float(gauss)],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        }
    )
    content: bytes = save(tensors, metadata=metadata)
    return content


def load_random_state(path: Path) -> None:
    """Give every generator the state that was saved."""
    state = load_nested(path)
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, numbers, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if torch.backends.mps.is_available() and state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])


def save_trained(model: Any, tokenizer: Any, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write `adapter/` below a checkpoint: the adapter (or, for full fine-tuning, the model) and its tokenizer."""
    save_adapter(model, tokenizer, folder / ADAPTER_SUBFOLDER, weights=weights)
    state = trainer_of_model(model).state(model)
    if state:
        save_nested(state, folder / _METHOD_STATE)


def save_adapter(
    model: Any,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what was trained into one folder, as PEFT's and transformers' `from_pretrained` take it.

    Args:
        model: With its adapter, if it has one.
        tokenizer: Saved next to it.
        folder: Made where it is missing.
        dtype: Rounds a fully trained model; without it, the float32 that training continues from stays.
        weights: What is trained, by its full name; without them, those that the model holds.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        # PEFT would query the Hub for whether the vocabulary grew. It cannot have: embeddings that are trained are either
        # adapted or among modules_to_save, and both are saved.
        with trainer_of_model(model).saving(model):
            model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    elif dtype is None:
        model.save_pretrained(str(folder), state_dict=weights)
    else:
        tensors = {name: tensor.to(dtype) for name, tensor in (weights or model.state_dict()).items()}
        config_dtype = model.config.dtype
        model.config.dtype = dtype
        try:
            model.save_pretrained(str(folder), state_dict=tensors)
        finally:
            model.config.dtype = config_dtype
    tokenizer.save_pretrained(str(folder))
    if (processor := getattr(tokenizer, "image_text", None)) is not None:
        processor.save(folder)


def load_trained(model: Any, checkpoint: Path) -> None:
    """Give a model of the same make the weights of a checkpoint, bit by bit.

    Raises:
        ValueError: If the checkpoint lacks something that is trained.
    """
    folder = checkpoint / ADAPTER_SUBFOLDER
    if hasattr(model, "peft_config"):
        trainer, config = trainer_of_model(model), load_plain(folder / ADAPTER_CONFIG)
        trainer.load_weights(model, sharded_weights(model, load_file(folder / ADAPTER_WEIGHTS)), config)
        if (checkpoint / _METHOD_STATE).is_file():
            trainer.load_state(model, load_nested(checkpoint / _METHOD_STATE))
        return
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    missing, unexpected = model.load_state_dict(sharded_weights(model, weights), strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    missing_names = [name for name in missing if name not in tied]
    if missing_names or unexpected:
        raise ValueError(f"the checkpoint does not fit the model: {(missing_names or unexpected)[0]}")


def count_parameters(model: Any) -> tuple[int, int]:
    """Count trainable parameters and all of them, packed weights as what they hold, as PEFT counts."""
    if hasattr(model, "peft_config"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total


def load_warm_start(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Load the weights of an earlier adapter into a fresh one; return what they replaced.

    Raises:
        ConfigError: If the earlier adapter cannot be read, or its method or targets are not those of this run.
    """
    try:
        earlier = read_config(folder / ADAPTER_CONFIG, folder.name)
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, ModelError) as error:
        raise _refusal(f"the adapter in {folder.name} cannot be read; it may be incomplete.") from error
    _require_same_settings(earlier, model.peft_config["default"].to_dict())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if foreign := sorted(frozen & weights.keys()):
        # PEFT would write it into the base, which is not saved with the adapter.
        raise _refusal(f"it holds {foreign[0].removeprefix('base_model.model.')}, which this run does not train.")
    replaced = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    try:
        result = trainer_of_model(model).load_weights(model, weights, earlier)
    except (RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise _refusal("its weights have other shapes than this run's: it belongs to another model.") from error
    if unexpected := getattr(result, "unexpected_keys", None):
        raise _refusal(f"it adapts {_module(unexpected[0])}, which this run does not; give both the same targets.")
    if missing := [name for name in getattr(result, "missing_keys", None) or [] if name in replaced]:
        raise _refusal(f"it does not adapt {_module(missing[0])}, as this run does; give both the same targets.")
    train_in_float32(model)
    return replaced


def _require_same_settings(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse an earlier adapter by its configuration and this run's, as PEFT has both."""
    if initialization := initialization_from_base(earlier):
        raise _refusal(f"it was initialized with {initialization}, which changes its base's weights. {PLAIN_LORA_FIX}")
    method = method_of_peft_type(str(_plain(now["peft_type"])))
    for name in ("peft_type", *(method.same_on_warm_start if method is not None else ())):
        before, after = earlier.get(name), _plain(now.get(name))
        if None not in (before, after) and before != after:
            raise _refusal(f"its {name} is {before}, and this run's is {after}; give both the same.")
    saved, own = (", ".join(sorted(config.get("modules_to_save") or ())) or "none" for config in (earlier, now))
    if saved != own:
        raise _refusal(f"its modules_to_save are {saved}, and this run's are {own}; give both the same.")


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # of an enum


def _module(name: str) -> str:
    module = name.removeprefix("base_model.model.")
    for mark in tensor_marks():
        module = module.split(f".{mark}")[0]
    return module


def _refusal(message: str) -> ConfigError:
    return ConfigError([Problem("adapter.warm_start", message)])

"""Start from the weights of an earlier adapter, with a new optimizer and schedule."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.config.methods.lora import PLAIN_LORA_FIX, initialization_from_base
from engine.config.methods.registry import method_of_peft_type, tensor_marks
from engine.errors import ConfigError, ModelError, Problem
from engine.models.folder import read_config
from engine.runs.provenance import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.training.build import train_in_float32
from engine.training.failure import is_out_of_memory
from engine.training.methods.registry import trainer_of_model


def load_warm_start(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Give a freshly made adapter the weights of an earlier one; returns what they replaced, for `untrained_base`.

    Raises:
        ConfigError: If the two are not of the same make.
    """
    try:
        earlier = read_config(folder / ADAPTER_CONFIG, folder.name)
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, ModelError) as error:
        raise _refusal(f"the adapter in {folder.name} cannot be read; it may be incomplete.") from error
    if initialization := initialization_from_base(earlier):
        raise _refusal(f"it was initialized with {initialization}, which changes its base's weights. {PLAIN_LORA_FIX}")
    now = model.peft_config["default"].to_dict()
    method = method_of_peft_type(str(getattr(now["peft_type"], "value", now["peft_type"])))
    for name in ("peft_type", *(method.same_on_warm_start if method is not None else ())):
        was, is_ = earlier.get(name), now.get(name)
        is_ = getattr(is_, "value", is_)
        if was is not None and is_ is not None and was != is_:
            raise _refusal(f"its {name} is {was}, and this run's is {is_}; give both the same.")
    was, is_ = (sorted(each.get("modules_to_save") or ()) for each in (earlier, now))
    if was != is_:
        raise _refusal(
            f"its modules_to_save are {', '.join(was) or 'none'}, and this run's are {', '.join(is_) or 'none'}; give both "
            "the same."
        )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if foreign := sorted(frozen & weights.keys()):
        # PEFT would write it into the base, which is not saved with the adapter.
        raise _refusal(f"it holds {foreign[0].removeprefix('base_model.model.')}, which this run does not train.")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    try:
        result = trainer_of_model(model).load_weights(model, weights, earlier)
    except (RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise _refusal("its weights have other shapes than this run's: it belongs to another model.") from error
    if unexpected := getattr(result, "unexpected_keys", None):
        raise _refusal(f"it adapts {_module(unexpected[0])}, which this run does not; give both the same targets.")
    if missing := [name for name in getattr(result, "missing_keys", None) or [] if name in before]:
        raise _refusal(f"it does not adapt {_module(missing[0])}, as this run does; give both the same targets.")
    train_in_float32(model)
    return before


@contextlib.contextmanager
def untrained_base(model: Any, replaced: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Make a model its base within the block, whichever adapter it starts from.

    What `load_warm_start` replaced is put back: trained biases are not the adapter's, and stay when it is off.
    """
    parameters = dict(model.named_parameters())
    loaded = {name: parameters[name].detach().clone() for name in replaced}
    try:
        _copy_into(parameters, replaced)
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns of the biases
                stack.enter_context(model.disable_adapter())
            yield
    finally:
        _copy_into(parameters, loaded)


def _copy_into(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy in place: a shard cannot be put in another's place."""
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _module(name: str) -> str:
    module = name.removeprefix("base_model.model.")
    for mark in tensor_marks():
        module = module.split(f".{mark}")[0]
    return module


def _refusal(message: str) -> ConfigError:
    return ConfigError([Problem("adapter.warm_start", message)])

"""One model over several GPUs: its layers are loaded onto different devices, and each pass goes from one to the next.

Accelerate's hooks bring every module its inputs. What they leave open is done here: where each module is, that
what all layers are given is copied once for each device and not once for each layer, and that a layer gets its input
before it is checkpointed, because torch saves the random numbers of those devices alone that the input is on.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config.run import RunConfig
from engine.hardware.device import Device
from engine.inspector.worker.inventory import inventory_of
from engine.memory.estimate import Estimator
from engine.memory.layer_split import DevicePart
from engine.memory.workload import workload_of_run
from engine.models.folder import read_config
from engine.models.source import ModelSource


def plan_spread(source: ModelSource, config: RunConfig, devices: Sequence[Device]) -> dict[str, int]:
    """Where each module of a model goes among devices in torch's order, as `from_pretrained` takes it (`device_map`).

    Raises:
        ConfigError: If there are fewer layers than devices.
        ModelError: If the folder describes no model, or one of whose layers nothing is known.
    """
    shape = inventory_of(read_config(Path(source.location) / "config.json", source.name))
    parts = Estimator(shape, devices[0]).parts(workload_of_run(shape, config, devices[0]), len(devices))
    architecture = AutoConfig.from_pretrained(source.location, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
    return device_map_of(empty, parts)


def device_map_of(model: torch.nn.Module, parts: Sequence[DevicePart]) -> dict[str, int]:
    """Number of the device for each layer, and for each module outside of the layers that has weights or buffers.

    What none of the parts names, such as tables of angles, goes to the first device. The model may be without weights.
    """
    layers = {layer: number for number, part in enumerate(parts) for layer in part.layers}
    outside = {name: number for number, part in enumerate(parts) for name in part.outside}
    places = dict(layers)
    for name, module in model.named_modules():
        own = itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False))
        is_outside = not any(f"{name}.".startswith(f"{layer}.") for layer in layers)
        if is_outside and next(own, None) is not None:
            places[name] = outside.get(name, 0)
    return places


def attach_device_hooks(causal_lm: Any) -> None:
    """Hand each pass from device to device; call it on a model whose modules are placed as its `hf_device_map` has them.

    The last hidden states end on the device of the output head, where the loss is computed.
    """
    places: Mapping[str, Any] = causal_lm.hf_device_map
    lists = {name for name, module in causal_lm.named_modules() if isinstance(module, torch.nn.ModuleList)}
    layers = [causal_lm.get_submodule(name) for name in places if name.rpartition(".")[0] in lists]
    devices = [_device_of(layer) for layer in layers]
    copies: dict[torch.device, WeakTensorKeyDictionary] = defaultdict(WeakTensorKeyDictionary)
    for layer, own, following in zip(layers, devices, [*devices[1:], devices[-1]], strict=True):
        if own != devices[0]:
            layer.register_forward_pre_hook(_BroughtAlong(own, copies[own]), with_kwargs=True)
        if following != own:
            layer.register_forward_hook(_HandedOn(following))
    head = _device_of(causal_lm.get_output_embeddings())
    causal_lm.base_model.register_forward_hook(_HandedOn(head))


@dataclass(frozen=True)
class _HandedOn:
    """A hook behind a module: its hidden states go to the device where they are needed next."""

    device: torch.device

    def __call__(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output.to(self.device)
        if isinstance(output, tuple):
            return (output[0].to(self.device), *output[1:])
        output["last_hidden_state"] = output["last_hidden_state"].to(self.device)
        return output


@dataclass(frozen=True)
class _BroughtAlong:
    """A hook before a layer: masks, positions and angles, which all layers share, are copied once for each device."""

    device: torch.device
    copies: WeakTensorKeyDictionary  # of tensors that are alive, by the original

    def __call__(self, _module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self._moved(args), {name: self._moved(value) for name, value in kwargs.items()}

    def _moved(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(self._moved(each) for each in value)
        if not isinstance(value, torch.Tensor) or value.device == self.device:
            return value
        if value.requires_grad:
            return value.to(self.device)
        if value not in self.copies:
            self.copies[value] = value.to(self.device)
        return self.copies[value]


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device

"""One model over several GPUs: sharded over processes, or with its layers on the devices of one process.

PyTorch's FSDP2 divides weights, gradients and optimizer state. Each decoder layer is a group of its own, which is gathered while it runs; what is outside of the layers is another.
Accelerate's plugin does the same, but ignores FSDP on a CPU, where it is tested, and shards when training starts, after
the whole model was on each GPU. Here the trainer gets a model that is sharded already, as transformers' own loader gives it.

Where layers are on several devices, Accelerate's hooks bring every module its inputs. The rest is done here: where each
module is; inputs that all layers share are copied once for each device and not once for each layer; a layer gets its input
before it is checkpointed, because torch saves the random numbers of the input's devices alone.

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277); torch/distributed/fsdp/_fully_shard.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AutoConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from loratory.engine.config.run import RunConfig
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.layer_split import DevicePart
from loratory.engine.memory.workload import workload_of_run
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.folder import read_config
from loratory.engine.models.source import ModelSource
from loratory.engine.training.image_parts import language_model_of, model_class_of
from loratory.engine.training.ops.loss import causal_lm_of
from loratory.engine.training.placement import Placement


def shard(model: Any, placement: Placement, compute: torch.dtype) -> None:
    """Divide a model among the processes of a group; each has the whole model on its CPU before.

    A layer goes to the device by itself and stays there with this process's share only, so no device ever holds the model.

    Args:
        model: With its adapter, if it has one.
        placement: Where this process trains.
        compute: Dtype of matrix products. Layers of which everything is trained are gathered in it: copies that autocast
            makes of them would be kept for the backward pass, all layers together.
    """
    device = placement.torch_device.type
    mesh = init_device_mesh(device, (placement.group.world_size,))
    rounded = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    causal_lm = causal_lm_of(model)
    # What sees images is gathered with the root: a process whose rows have none would not come to its layers.
    for module in list(language_model_of(causal_lm).modules()):
        if isinstance(module, GradientCheckpointingLayer):
            is_trained = all(parameter.requires_grad for parameter in module.parameters())
            fully_shard(module, mesh=mesh, mp_policy=rounded if is_trained else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    if getattr(causal_lm, "hf_device_map", None):  # Accelerate refuses a quantized model if this names another device
        causal_lm.hf_device_map = {"": placement.torch_device}
    # transformers' trainer then wraps and moves nothing; `Trainer._prepare_for_training`.
    causal_lm._is_distributed_loading_by_transformers = True


def is_sharded(model: Any) -> bool:
    """Return whether a model went through `shard`."""
    return isinstance(model, FSDPModule)


def reshard(model: Any) -> None:
    """Free what is gathered: a pass without gradients leaves what is outside of the layers whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return whole copies of what is trained, by its full name, in the first process; all processes must call this."""
    reshard(model)
    weights: dict[str, torch.Tensor] = whole(
        {n: weight for n, weight in model.named_parameters() if weight.requires_grad}
    )
    return weights


def whole(values: Any) -> Any:
    """Gather the shards in nested values onto the CPU of the first process; all processes must call this, the others get nothing."""
    if isinstance(values, DTensor):
        is_first = values.device_mesh.get_rank() == 0
        full = values.full_tensor()
        return full.detach().cpu() if is_first else torch.empty(0)
    if isinstance(values, Mapping):
        return {key: whole(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [whole(value) for value in values]
    return values


def sharded_like(weights: Mapping[str, torch.Tensor], owners: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return this process's shares of whole weights, divided as the tensors of the same names are; others stay whole."""
    return {name: _sharded_as(weight, owners.get(name)) for name, weight in weights.items()}


def _sharded_as(weight: torch.Tensor, owner: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(owner, DTensor) or weight.shape != owner.shape:
        return weight
    # Without a source, nothing is sent: every process has read the same file.
    return distribute_tensor(weight.to(owner.device), owner.device_mesh, owner.placements, src_data_rank=None)


def sharded_weights(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights, by the names that they have in a file, as `load_state_dict` of this model takes them."""
    if not is_sharded(model):
        return weights
    reshard(model)
    is_adapted = hasattr(model, "peft_config")
    owners = peft.get_peft_model_state_dict(model, save_embedding_layers=False) if is_adapted else model.state_dict()
    return sharded_like(weights, owners)


def sharded_optimizer_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's saved state as its `load_state_dict` takes it where its parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shares = {
        number: {name: _sharded_as(value, parameters[number]) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }  # fmt: skip
    return state | {"state": shares}


def plan_layer_split(source: ModelSource, config: RunConfig, devices: Sequence[Device]) -> dict[str, int]:
    """Divide the modules of a model among devices in torch's order, as `from_pretrained` takes it (`device_map`).

    Raises:
        ConfigError: If there are fewer layers than devices.
        ModelError: If the folder does not describe a model, or one whose layers are unknown.
    """
    shape = inventory_of(read_config(Path(source.location) / "config.json", source.name))
    parts = Estimator(shape, devices[0]).parts(workload_of_run(shape, config, devices[0]), len(devices))
    architecture = AutoConfig.from_pretrained(source.location, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        empty = model_class_of(family_of(architecture.to_dict())).from_config(architecture, trust_remote_code=False)
    return device_map_of(empty, parts)


def device_map_of(model: torch.nn.Module, parts: Sequence[DevicePart]) -> dict[str, int]:
    """Return the device number of each layer, and of each module outside of the layers that has weights or buffers.

    What none of the parts names, such as tables of angles, goes to the first device. The model may be without weights.
    """
    layers = {layer: number for number, part in enumerate(parts) for layer in part.layers}
    outside = {name: number for number, part in enumerate(parts) for name in part.outside}
    device_map = dict(layers)
    for name, module in model.named_modules():
        own = itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False))
        is_outside = not any(f"{name}.".startswith(f"{layer}.") for layer in layers)
        if is_outside and next(own, None) is not None:
            device_map[name] = outside.get(name, 0)
    return device_map


def attach_device_hooks(causal_lm: Any) -> None:
    """Move each pass from device to device; call it on a model whose modules are on the devices of its `hf_device_map`.

    The last hidden states end on the device of the output head, where the loss is computed.
    """
    device_map: Mapping[str, Any] = causal_lm.hf_device_map
    lists = {name for name, module in causal_lm.named_modules() if isinstance(module, torch.nn.ModuleList)}
    layers = [causal_lm.get_submodule(name) for name in device_map if name.rpartition(".")[0] in lists]
    devices = [_device_of(layer) for layer in layers]
    copies: dict[torch.device, WeakTensorKeyDictionary] = defaultdict(WeakTensorKeyDictionary)
    for layer, own, next_device in zip(layers, devices, [*devices[1:], devices[-1]], strict=True):
        if own != devices[0]:
            layer.register_forward_pre_hook(_MoveInputs(own, copies[own]), with_kwargs=True)
        if next_device != own:
            layer.register_forward_hook(_MoveOutput(next_device))
    head = _device_of(causal_lm.get_output_embeddings())
    causal_lm.base_model.register_forward_hook(_MoveOutput(head))


@dataclass(frozen=True)
class _MoveOutput:
    """A hook after a module: its hidden states go to the device where they are needed next."""

    device: torch.device

    def __call__(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output.to(self.device)
        if isinstance(output, tuple):
            return (output[0].to(self.device), *output[1:])
        output["last_hidden_state"] = output["last_hidden_state"].to(self.device)
        return output


@dataclass(frozen=True)
class _MoveInputs:
    """A hook before a layer: masks, positions and angles, which all layers share, are copied once for each device."""

    device: torch.device
    copies: WeakTensorKeyDictionary  # of tensors that are alive, by the original

    def __call__(self, _module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self._move(args), {name: self._move(value) for name, value in kwargs.items()}

    def _move(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(self._move(each) for each in value)
        if not isinstance(value, torch.Tensor) or value.device == self.device:
            return value
        if value.requires_grad:
            return value.to(self.device)
        if value not in self.copies:
            self.copies[value] = value.to(self.device)
        return self.copies[value]


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device

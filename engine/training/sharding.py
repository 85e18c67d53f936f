"""One model sharded over several processes by PyTorch's FSDP2: weights, gradients and optimizer state are divided.

Each decoder layer is a group of its own, which is gathered while it runs; what is outside of the layers is one more.
Accelerate's plugin does the same, but ignores FSDP on a CPU, where it is tested, and shards when training starts, after
the whole model was on each GPU. Here the trainer gets a model that is sharded already, as transformers' own loader gives it.

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277); torch/distributed/fsdp/_fully_shard.
"""

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from engine.training.ops.loss import causal_lm_of
from engine.training.placement import Placement


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
    for module in list(causal_lm.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            is_trained = all(parameter.requires_grad for parameter in module.parameters())
            fully_shard(module, mesh=mesh, mp_policy=rounded if is_trained else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    if getattr(causal_lm, "hf_device_map", None):  # Accelerate refuses a quantized model that it says is elsewhere
        causal_lm.hf_device_map = {"": placement.torch_device}
    # transformers' trainer then wraps and moves nothing; `Trainer._prepare_for_training`.
    causal_lm._is_distributed_loading_by_transformers = True


def is_sharded(model: Any) -> bool:
    """Whether a model went through `shard`."""
    return isinstance(model, FSDPModule)


def reshard(model: Any) -> None:
    """Free what is gathered: a pass without gradients leaves what is outside of the layers whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def forget_pass(model: Any) -> None:
    """Make a model ready for its next pass after one that was broken off."""
    if is_sharded(model):
        model.reset_iter_state()


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return whole copies of what is trained, by its full name, in the first process; all processes must ask."""
    reshard(model)
    weights: dict[str, torch.Tensor] = whole(
        {n: weight for n, weight in model.named_parameters() if weight.requires_grad}
    )
    return weights


def whole(values: Any) -> Any:
    """Gather the shards in nested values onto the CPU of the first process; all processes must ask, the others get none."""
    if isinstance(values, DTensor):
        is_first = values.device_mesh.get_rank() == 0
        gathered = values.full_tensor()
        return gathered.detach().cpu() if is_first else torch.empty(0)
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

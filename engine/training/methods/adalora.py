"""AdaLoRA in training: the orthogonal regularizer, the allocation of ranks, and what a checkpoint keeps of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import peft
import torch

from engine.config.methods.adalora import too_few_steps
from engine.errors import ConfigError, Problem
from engine.training.methods.base import MethodTrainer

_ADAPTER = "default"


class AdaLoraTrainer(MethodTrainer):
    """Does what PEFT's `AdaLoraModel` leaves to the trainer, or does only to outputs with a loss in them."""

    def prepare(self, model: Any) -> int:
        """Freeze `ranknum`, a divisor that PEFT leaves trainable on a base of 16 bits."""
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad = False
        return 0

    def begin(self, model: Any, total_steps: int) -> None:
        """Tell the allocator over how many steps the ranks fall."""
        config = _config(model)
        if config.tinit + config.tfinal >= total_steps:
            raise ConfigError([Problem("adapter.tinit", too_few_steps(config.tinit, config.tfinal, total_steps))])
        config.total_step = total_steps

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return the mean distance of the singular vectors from orthogonal ones.

        Source: Zhang et al. 2023, equation 4; `AdaLoraModel.forward` in peft/tuners/adalora/model.py.
        """
        weight = _config(model).orth_reg_weight
        distances = []
        for name, parameter in model.named_parameters():
            if weight and parameter.requires_grad and (".lora_A." in name or ".lora_B." in name):
                products = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
                identity = torch.eye(products.shape[0], device=products.device, dtype=products.dtype)
                distances.append(torch.linalg.matrix_norm(products - identity).to(model.device))
        return weight * torch.stack(distances).mean() if distances else None

    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Update the importance of every weight, and clear singular values beyond the budget."""
        model.base_model.update_and_allocate(step)

    @contextmanager
    def saving(self, model: Any) -> Iterator[None]:
        """Save pruned ranks only while they are pruned: between two allocations, the optimizer moves them again."""
        config = _config(model)
        pattern = config.rank_pattern
        try:
            if pattern is not None and not _is_pruned(model, pattern):
                config.rank_pattern = None
            yield
        finally:
            config.rank_pattern = pattern

    def load_weights(self, model: Any, weights: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Any:
        """Load an adapter whose ranks may be pruned into one of full rank, with singular values of 0."""
        pattern = config.get("rank_pattern")
        own = _config(model)
        own.rank_pattern = None  # PEFT would shrink the modules, whose parameters the optimizer has
        if pattern:
            weights = _unpruned(model, weights, pattern)
        result = peft.set_peft_model_state_dict(model, weights)
        own.rank_pattern = pattern
        return result

    def state(self, model: Any) -> dict[str, Any]:
        """Return importances, the pattern of ranks, and vectors that a pruned adapter does not hold."""
        allocator, pattern = model.base_model.rankallocator, _config(model).rank_pattern
        importance = {name: dict(getattr(allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        vectors = {}
        if pattern is not None:
            vectors = {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad}
        return {"importance": importance, "rank_pattern": pattern, "vectors": vectors}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the allocator, and every vector bit by bit."""
        allocator, device = model.base_model.rankallocator, model.device
        for name, tensors in state["importance"].items():
            setattr(allocator, name, {key: tensor.to(device) for key, tensor in tensors.items()})
        _config(model).rank_pattern = state["rank_pattern"]
        with torch.no_grad():
            for name, value in state["vectors"].items():
                model.get_parameter(name).copy_(value)


def _config(model: Any) -> Any:
    return model.peft_config[_ADAPTER]


def _modules(pattern: Mapping[str, list[bool]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over modules and which ranks are kept; names in a pattern end in `.lora_E` or `.lora_E.default`."""
    for name, kept in pattern.items():
        yield f"base_model.model.{name.partition('.lora_E')[0]}", torch.tensor(kept)


def _is_pruned(model: Any, pattern: Mapping[str, list[bool]]) -> bool:
    return all(
        not model.get_parameter(f"{module}.lora_E.{_ADAPTER}")[~kept].any() for module, kept in _modules(pattern)
    )


def _unpruned(
    model: Any, weights: Mapping[str, torch.Tensor], pattern: Mapping[str, list[bool]]
) -> dict[str, torch.Tensor]:
    """Put saved ranks in their places among the fresh vectors of a model."""
    full = dict(weights)
    for module, kept in _modules(pattern):
        for part, dimension in (("lora_E", 0), ("lora_A", 0), ("lora_B", 1)):
            key = f"{module}.{part}"
            fresh = model.get_parameter(f"{key}.{_ADAPTER}").detach().cpu().clone()
            if part == "lora_E":
                fresh.zero_()
            full[key] = fresh.index_copy_(dimension, kept.nonzero().flatten(), weights[key].to(fresh.dtype))
    return full

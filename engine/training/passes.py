"""Passes through a model and what they give, alone or with the other processes of a run."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from engine.training.batching.batches import PassTensors
from engine.training.batching.steps import TrainerSetup
from engine.training.objectives.base import PassLosses
from engine.training.placement import ProcessGroup
from engine.training.sharding import is_sharded

_Pass = TypeVar("_Pass")


class ModelPasses:
    """Computes losses and metrics of passes, in training and in measurements.

    Args:
        accelerator: Of the trainer, which adds up over all processes.
        device: That passes and sums are on.
    """

    def __init__(self, model: Any, setup: TrainerSetup, accelerator: Any, device: torch.device) -> None:
        self._objective = setup.objective
        self._autocast = setup.autocast
        self._accelerator = accelerator
        self._device = device
        self._group = ProcessGroup(setup.settings.rank, setup.settings.world_size)
        self.is_sharded = is_sharded(model)

    def with_company(self, passes: Sequence[_Pass], spare: Callable[[], _Pass], most: int | None = None) -> list[_Pass]:
        """Return passes, and as many that do not count as another process of a sharded model has more.

        Each pass gathers every layer from all processes, which wait for one another. `most` is how many a process has, where
        the plan of a step says so; else they ask each other.
        """
        if not self.is_sharded:
            return list(passes)
        missing = (self._group.largest(len(passes)) if most is None else most) - len(passes)
        return [*passes, *(spare() for _ in range(missing))]

    def terms(self, passes: Sequence[PassTensors]) -> list[int]:
        """Return the terms of each part of the loss in these passes."""
        return [sum(part) for part in zip(*(self._objective.terms(one) for one in passes), strict=True)]

    def estimate(self, model: Any, passes: Iterable[PassTensors]) -> torch.Tensor | None:
        """Return what the objective needs of all passes before their losses, summed over all processes."""
        objective, device = self._objective, self._device
        if not objective.needs_estimate:
            return None
        found = torch.zeros(2, device=device)
        for one in passes:
            if one.also is not None:
                with self.casting():
                    found += objective.estimate(model, one.also.to(device)).to(device)
        return found if self._accelerator.num_processes == 1 else self._accelerator.reduce(found, reduction="sum")

    def losses(self, model: Any, one: PassTensors, estimate: torch.Tensor | None = None) -> PassLosses:
        """Return the losses of a pass; zeros where it has nothing to train on."""
        objective = self._objective
        if max(terms := objective.terms(one)) == 0:  # a row whose only trained token is its first
            nothing = torch.zeros((), device=self._device)
            if torch.is_grad_enabled() or self.is_sharded:
                nothing = self._no_gradient(model, one)
            return PassLosses((nothing, *(torch.zeros_like(nothing) for _ in terms[1:])))
        with self.casting():
            return objective.losses(model, one, estimate)

    def _no_gradient(self, model: Any, one: PassTensors) -> torch.Tensor:
        """A loss of zero, which gives every trained weight a gradient of zero."""
        if self._accelerator.num_processes == 1:
            # A gradient of zero for each, or a step of such rows alone would move one of them alone.
            trained = (p.sum().float().to(self._device) for p in model.parameters() if p.requires_grad)
            return torch.stack(list(trained)).sum() * 0.0
        # Other processes wait for this one's gradients, which only a pass through the model sends.
        one = one.with_any_token()
        with self.casting():
            if self.is_sharded:
                self._objective.accompany(model, one)
            return model(**one.inputs, trained_tokens=one.trained) * 0.0

    def casting(self) -> Any:
        """Return the context in which products have their dtype."""
        dtype = self._autocast
        return contextlib.nullcontext() if dtype is None else torch.autocast(self._device.type, dtype=dtype)

    def means(self, measured: torch.Tensor | None) -> dict[str, float]:
        """Return the objective's metrics over all processes, by name, as far as anything was measured."""
        names = self._objective.traits.metrics
        if not names:
            return {}
        if measured is None:
            measured = torch.zeros(len(names), 2, device=self._device)
        if self._accelerator.num_processes > 1:
            measured = self._accelerator.reduce(measured, reduction="sum")
        pairs = zip(names, measured.double().cpu().tolist(), strict=True)
        means = {name: total / count for name, (total, count) in pairs if count}
        if "rewards/margins" not in names and {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

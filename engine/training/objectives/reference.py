"""The reference model: what training started from, computed with the trained model's base instead of a copy."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from engine.training.sharding import is_sharded, reshard


@dataclass(frozen=True)
class Reference:
    """The base with its adapter disabled, or with the adapter that training started from.

    `start` has the weights that replace the model's own meanwhile: those of a warm start, or trained biases of the base,
    which no adapter holds.
    """

    start: Mapping[str, torch.Tensor] = field(default_factory=dict)
    keeps_adapter: bool = False

    @classmethod
    def of(cls, model: Any, *, warm_started: bool) -> Self:
        """Return the reference of a model before its first step."""
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not warm_started:
            weights = {
                name: p for name, p in weights.items() if name.endswith(".bias") and "modules_to_save" not in name
            }
        return cls({name: p.detach().clone() for name, p in weights.items()}, warm_started)

    @contextlib.contextmanager
    def replacing(self, model: Any) -> Iterator[Any]:
        """Make a model the reference within the block, without gradient, and yield it without the wrapper of DDP."""
        inner = getattr(model, "module", model)
        must_copy = is_sharded(inner) and bool(self.start)
        if must_copy:  # otherwise weights that an earlier pass gathered would be used
            reshard(inner)
        parameters = dict(inner.named_parameters()) if self.start else {}
        own = {name: parameters[name].data.clone() if must_copy else parameters[name].data for name in self.start}
        try:
            _put(parameters, self.start, copies=must_copy)
            with torch.no_grad(), contextlib.ExitStack() as stack:
                if not self.keeps_adapter:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # PEFT warns of biases, which are replaced above
                        stack.enter_context(inner.disable_adapter())
                yield inner
        finally:
            if must_copy:
                reshard(inner)
            _put(parameters, own, copies=must_copy)


def _put(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], *, copies: bool) -> None:
    """Set the values of parameters; shards are copied, because FSDP keeps their storage."""
    with torch.no_grad():
        for name, value in values.items():
            if copies:
                parameters[name].copy_(value)
            else:
                parameters[name].data = value

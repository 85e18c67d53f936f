"""The model that training started from, out of the very weights that are trained: never a second copy of the base."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from engine.training.sharding import is_sharded, reshard


@dataclass(frozen=True)
class Reference:
    """The base with the adapter switched off, or with the adapter that training started from.

    `start` has the weights that differ from the model's own while it is the reference: those of a warm start, or trained
    biases of the base, which no adapter holds.
    """

    start: Mapping[str, torch.Tensor] = field(default_factory=dict)
    keeps_adapter: bool = False

    @classmethod
    def of(cls, model: Any, *, warm_started: bool) -> Self:
        """Remember a model as it is before its first step."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not warm_started:
            trained = {
                name: p for name, p in trained.items() if name.endswith(".bias") and "modules_to_save" not in name
            }
        return cls({name: p.detach().clone() for name, p in trained.items()}, warm_started)

    @contextlib.contextmanager
    def replacing(self, model: Any) -> Iterator[Any]:
        """Make a model the reference within the block, without gradient, and yield it without the wrapper of DDP."""
        inner = getattr(model, "module", model)
        sharded = is_sharded(inner) and bool(self.start)
        if sharded:  # what an earlier pass has gathered would be used again
            reshard(inner)
        parameters = dict(inner.named_parameters()) if self.start else {}
        own = {name: parameters[name].data.clone() if sharded else parameters[name].data for name in self.start}
        try:
            _put(parameters, self.start, copies=sharded)
            with torch.no_grad(), contextlib.ExitStack() as stack:
                if not self.keeps_adapter:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # PEFT warns of biases, which are replaced above
                        stack.enter_context(inner.disable_adapter())
                yield inner
        finally:
            if sharded:
                reshard(inner)
            _put(parameters, own, copies=sharded)


def _put(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], *, copies: bool) -> None:
    """Give parameters other values; a shard is copied into, for FSDP knows its storage."""
    with torch.no_grad():
        for name, value in values.items():
            if copies:
                parameters[name].copy_(value)
            else:
                parameters[name].data = value

"""The reference model: what training started from, computed with the trained model's base instead of a copy, or cached."""

import contextlib
import hashlib
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loratory.engine.config.run import RunConfig
from loratory.engine.data.files.access import fingerprint_of
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.training.distribution import is_sharded, reshard


@dataclass(frozen=True)
class ReferenceModel:
    """The base with its adapter disabled, or with the adapter that training started from.

    `start` has the weights that replace the model's own meanwhile: those of a warm start, or trained biases of the base,
    which no adapter holds.
    """

    start: Mapping[str, torch.Tensor] = field(default_factory=dict)
    keeps_adapter: bool = False

    @classmethod
    def from_model(cls, model: Any, *, warm_started: bool) -> Self:
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


_NAME = "log_probabilities"  # (pairs, 2): of the chosen and of the rejected answer


@dataclass(frozen=True)
class PairsWithReference(Sequence[Any]):
    """Pairs with the reference's log-probabilities, (pairs, 2)."""

    pairs: Sequence[Any]
    log_probabilities: torch.Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        chosen, rejected = self.log_probabilities[index].tolist()
        return replace(self.pairs[index], reference=(chosen, rejected))


@dataclass(frozen=True)
class ReferenceCache:
    """A disk cache of log-probabilities; `path` is named after everything that they depend on, except the pairs."""

    path: Path

    @classmethod
    def for_run(cls, folder: Path, base: Path, start: Path | None, config: RunConfig, dtype: str) -> "ReferenceCache":
        """Return the cache for a base, an adapter to start from, a precision and batches."""
        weights = [path for source in (base, start) if source for path in sorted(source.glob("*.safetensors"))]
        model = config.model
        facts = (
            [fingerprint_of(path) for path in weights], model.quantization, model.double_quant, dtype,
            model.attn_implementation, config.adapter.method, config.training.max_length,
            config.training.per_device_train_batch_size, str(torch.__version__),
        )  # fmt: skip
        return cls(folder / "reference" / hashlib.sha256(repr(facts).encode()).hexdigest())

    def load(self, pairs: Sequence[TokenizedRow]) -> torch.Tensor | None:
        """Return the cached values of exactly these pairs; None if there are none."""
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            values = load_file(self._file(pairs))[_NAME]
            if values.shape == (len(pairs), 2) and bool(torch.isfinite(values).all()):
                return values
        return None

    def save(self, pairs: Sequence[TokenizedRow], log_probabilities: torch.Tensor) -> None:
        """Save the values; errors are ignored, since the values can be computed again."""
        file = self._file(pairs)
        partial = file.with_suffix(".partial")
        with contextlib.suppress(OSError, SafetensorError):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({_NAME: log_probabilities.contiguous()}, partial)
            partial.replace(file)

    def _file(self, pairs: Sequence[TokenizedRow]) -> Path:
        digest = hashlib.sha256()
        for pair in pairs:
            for sequence in pair.sequences:
                ids = sequence.input_ids
                digest.update(array("q", [len(ids), sequence.trained_tokens, *ids]).tobytes())
                digest.update("".join(image.digest for image in sequence.images).encode())
        return self.path / f"{digest.hexdigest()}.safetensors"

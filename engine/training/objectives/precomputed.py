"""Log-probabilities of the reference, computed once for all pairs and cached for later attempts and other runs."""

import contextlib
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.config.run import RunConfig
from engine.data.files.access import fingerprint_of
from engine.data.render.tokenize import TokenizedRow

_NAME = "log_probabilities"  # (pairs, 2): of the chosen and of the rejected answer


class PairsWithReference(Sequence[Any]):
    """Pairs with the reference's log-probabilities, (pairs, 2)."""

    def __init__(self, pairs: Sequence[Any], log_probabilities: torch.Tensor) -> None:
        self._pairs = pairs
        self._log_probabilities = log_probabilities

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        chosen, rejected = self._log_probabilities[index].tolist()
        return replace(self._pairs[index], reference=(chosen, rejected))


@dataclass(frozen=True)
class ReferenceCache:
    """A disk cache of log-probabilities; `path` is named after everything that they depend on, except the pairs."""

    path: Path

    @classmethod
    def of(cls, folder: Path, base: Path, start: Path | None, config: RunConfig, dtype: str) -> "ReferenceCache":
        """Return the cache for a base, an adapter to start from, a precision and batches."""
        weights = [path for place in (base, start) if place is not None for path in sorted(place.glob("*.safetensors"))]
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
            for one in pair.sequences:
                digest.update(array("q", [len(one.input_ids), one.trained_tokens, *one.input_ids]).tobytes())
        return self.path / f"{digest.hexdigest()}.safetensors"

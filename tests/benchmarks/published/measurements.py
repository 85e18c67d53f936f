"""Published measurements of training memory: read a file of them, and say of each what step was measured."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

MeasuredKind = Literal["allocated", "reserved", "process"]
MIB = 2**20
_UNITS = {"bytes": 1, "MiB": MIB, "GiB": 2**30}
_MORE: dict[str, MeasuredKind] = {
    "max_memory_reserved_mib": "reserved",
    "process_mib": "process",
    "nvidia_smi_peak_mib": "process",
}


class _Entry(BaseModel):
    """A part of a file of measurements: what it leaves out, or sets to null, has its usual value."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {key: v for key, v in values.items() if v is not None} if isinstance(values, dict) else values


class PublishedArchitecture(_Entry):
    """Sizes as the file names them."""

    name: str = ""
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int | None = None
    intermediate_size: int
    vocab_size: int
    head_dim: int | None = None
    tie_word_embeddings: bool = False


class MeasuredPoint(_Entry):
    """One measurement with the settings that it was made with, in the words of its source."""

    id: str
    tier: str = "?"
    model_id: str = ""
    arch: PublishedArchitecture | None = None
    method: str
    quantization: str = "none"
    base_dtype: str = "bfloat16"
    compute_dtype: str = "bfloat16"
    autocast: bool = False
    trainable_dtype: str = "fp32"
    lora_r: int | None = None
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    num_virtual_tokens: int = 20
    batch_size: int
    seq_len: int
    grad_checkpointing: bool | str = False
    optimizer: str = "adamw_torch"
    attention: str = "sdpa"
    loss_path: str = "HF loss"
    framework: str = ""
    versions: dict[str, str | None] = {}
    gpu: str = ""
    measured_kind: str
    measured_value: float
    measured_unit: str
    extra: dict[str, Any] = {}
    source_url: str = ""

    @property
    def source(self) -> str:
        """Short name of where the measurement comes from."""
        match = re.search(r"github\.com/[^/]+/([\w.-]+)|pypi\.org/project/([\w.-]+)", self.source_url)
        if match:
            return match[1] or match[2]
        return self.source_url.split("//")[-1].split("/")[0] or self.framework or "unknown"

    @property
    def environment(self) -> str:
        """Source and versions: what a measurement has in common with those that were made beside it."""
        versions = (f"{name} {self.versions[name]}" for name in ("torch", "transformers") if self.versions.get(name))
        return ", ".join([self.source, *versions])

    @property
    def loads_kernels_when_called(self) -> bool:
        """Whether its CUDA is known to do so by itself: 12.2 and later; PyTorch 2.5 and later come with 12.4."""
        cuda = re.search(r"\+cu(\d\d)(\d)$", self.versions.get("torch") or "")
        if cuda is not None:
            return (int(cuda[1]), int(cuda[2])) >= (12, 2)
        return (self.version("torch") or (0,)) >= (2, 5)

    def version(self, package: str) -> tuple[int, ...] | None:
        """Version of a package as numbers, None where it is not known."""
        numbers = re.findall(r"\d+", (self.versions.get(package) or "").split("+")[0])
        return tuple(int(number) for number in numbers[:3]) if numbers else None


class Observation(NamedTuple):
    """One number of a measurement."""

    kind: MeasuredKind
    bytes: int


def read_measurements(path: Path) -> list[MeasuredPoint]:
    """Read a file of measurements."""
    return TypeAdapter(list[MeasuredPoint]).validate_json(path.read_bytes())


def observations(point: MeasuredPoint) -> Iterator[Observation]:
    """Return every figure of a measurement that has a counterpart in an estimate, each kind once."""
    kind: MeasuredKind = "reserved" if "reserved" in point.measured_kind else "allocated"
    kinds = {kind}
    yield Observation(kind, round(point.measured_value * _UNITS[point.measured_unit]))
    for key, kind in _MORE.items():
        if kind not in kinds and key in point.extra:
            kinds.add(kind)
            yield Observation(kind, round(point.extra[key] * MIB))

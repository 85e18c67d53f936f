"""Published measurements of training memory: read a file of them, and say of each what step was measured."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from engine.errors import StorageError

MeasuredKind = Literal["allocated", "reserved", "process"]
MIB = 2**20
_UNITS = {"bytes": 1, "b": 1, "kib": 2**10, "mib": MIB, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
# Source: unsloth/__init__.py; axolotl/utils/__init__.py, `set_pytorch_cuda_alloc_conf`; engine/training/worker.py.
_EXPANDING_FRAMEWORKS = ("unsloth", "axolotl", "loratory")
_OFF_WORDS = frozenset({"", "false", "no", "none", "off", "0"})


class _Entry(BaseModel):
    """A part of a file of measurements: what it leaves out, or sets to null, has its usual value."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), coerce_numbers_to_str=True)

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
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int | None = None
    model_type: str | None = None
    max_position_embeddings: int | None = None


class MeasuredPoint(_Entry):
    """One measurement with the settings that it was made with."""

    id: str
    tier: str = "?"
    model_id: str = ""
    arch: PublishedArchitecture | None = None
    method: str
    quantization: str = "none"
    double_quant: bool = False
    base_dtype: str = "bfloat16"
    compute_dtype: str = "bfloat16"
    autocast: bool = False
    trainable_dtype: str = "fp32"
    lora_r: int | None = None
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"
    num_virtual_tokens: int = 20
    batch_size: int
    seq_len: int
    grad_checkpointing: bool | str = False
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw_torch"
    attention: str = "sdpa"
    loss_path: str = "HF loss"
    framework: str = ""
    launcher: str = ""
    versions: dict[str, str | None] = {}
    gpu: str = ""
    n_gpus: int = 1
    measured_kind: str
    measured_value: float
    measured_unit: str
    extra: dict[str, Any] = {}
    source_url: str = ""

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, values: Any) -> Any:
        """Lift settings out of the extras, and normalize switches and formats."""
        if not isinstance(values, dict):
            return values
        lifted = dict(values)
        value = lifted.get("extra")
        extra = value if isinstance(value, dict) else {}
        lifted["double_quant"] = any(
            _is_on(place.get(key)) for place in (lifted, extra) for key in ("double_quant", "bnb_4bit_use_double_quant")
        )
        if "autocast" in lifted:
            lifted["autocast"] = _is_on(lifted["autocast"])
        format_ = lifted.get("quantization")
        if isinstance(format_, bool | int | float):
            lifted["quantization"] = f"{format_}-bit" if format_ in (4, 8) and not isinstance(format_, bool) else "none"
        return lifted

    @property
    def expands_segments(self) -> bool:
        """Whether PyTorch's allocator was asked for expandable segments, by a setting or by a framework that does so."""
        versions = {name: version for name, version in self.versions.items() if version}
        words = f"{self.framework} {json.dumps([self.extra, versions])}".casefold()
        match = re.search(r"expandable[ _-]?segments?\W*(true|yes|on|1|false|no|off|0)?", words)
        if match is not None:
            return match[1] not in ("false", "no", "off", "0")
        return any(name in self.framework.casefold() for name in _EXPANDING_FRAMEWORKS)

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


class Unreadable(NamedTuple):
    """An entry of a file that is not a measurement."""

    id: str
    reason: str


def read_measurements(path: Path) -> tuple[list[MeasuredPoint], list[Unreadable]]:
    """Read a file of measurements; entries that are none are listed with the reason.

    Raises:
        StorageError: If the file cannot be read, or is no JSON list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"{path.name} cannot be read ({error.strerror}).", "Check its name and permissions."
        ) from error
    except ValueError as error:
        raise StorageError(f"{path.name} is not JSON ({error}).", "Give a file of measurements.") from error
    if not isinstance(entries, list):
        raise StorageError(f"{path.name} holds no list of measurements.", "Give a JSON list of objects.")
    points, unreadable = [], []
    for number, entry in enumerate(entries):
        name = str(entry.get("id", number)) if isinstance(entry, dict) else str(number)
        try:
            points.append(MeasuredPoint.model_validate({"id": name, **entry} if isinstance(entry, dict) else entry))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            unreadable.append(Unreadable(name, f"{field}: {first['msg']}"))
    return points, unreadable


def observations(point: MeasuredPoint) -> Iterator[Observation]:
    """Every figure of a measurement that has a counterpart in an estimate, each kind once."""
    factor = _UNITS.get(point.measured_unit.strip().casefold())
    seen: set[str] = set()
    kind = kind_of(point.measured_kind)
    if factor is not None and kind is not None:
        seen.add(kind)
        yield Observation(kind, round(point.measured_value * factor))
    also: tuple[tuple[str, MeasuredKind, int], ...] = (
        ("max_memory_allocated_mib", "allocated", MIB),
        ("max_memory_reserved_mib", "reserved", MIB),
        ("max_memory_reserved_bytes", "reserved", 1),
        ("process_mib", "process", MIB),
        ("nvidia_smi_peak_mib", "process", MIB),
    )
    for key, also_kind, unit in also:
        value = point.extra.get(key)
        if isinstance(value, int | float) and value > 0 and also_kind not in seen:
            seen.add(also_kind)
            yield Observation(also_kind, round(value * unit))


def kind_of(text: str) -> MeasuredKind | None:
    """What a figure counts, by how its source calls it."""
    words = text.casefold()
    if "reserved" in words:
        return "reserved"
    if "allocated" in words:
        return "allocated"
    if any(word in words for word in ("nvidia-smi", "nvidia_smi", "smi", "process", "nvml", "device")):
        return "process"
    return None


def _is_on(value: Any) -> bool:
    """A switch, also where it is written in words."""
    return value.strip().casefold() not in _OFF_WORDS if isinstance(value, str) else bool(value)

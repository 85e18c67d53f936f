"""All methods side by side for one model and one set of rows."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.memory.estimate import Verdict, estimate_memory
from engine.models.shape import ModelShape

if TYPE_CHECKING:
    from engine.hardware.devices import Device


class MethodNeed(BaseModel):
    """One row of the method table."""

    model_config = ConfigDict(frozen=True)

    method: str  # as people call it
    needed_bytes: int | None  # None where the method cannot be used with this model
    verdict: Verdict | None
    trainable: int | None = None
    why_not: str = ""
    overrides: tuple[str, ...] = ()  # section.field=value: what choosing this row changes
    is_current: bool = False


_METHODS: tuple[tuple[str, dict[str, dict[str, Any]]], ...] = (
    (
        "Full fine-tuning",
        {"adapter": {"method": "none"}, "model": {"quantization": "none"}},
    ),
    ("LoRA", {"adapter": {"method": "lora"}, "model": {"quantization": "none"}}),
    ("LoRA on int8", {"adapter": {"method": "lora"}, "model": {"quantization": "int8"}}),
    (
        "QLoRA",
        {
            "adapter": {"method": "lora"},
            "model": {"quantization": "nf4"},
            "training": {"gradient_checkpointing": False},
        },
    ),
    (
        "QLoRA with checkpointing",
        {
            "adapter": {"method": "lora"},
            "model": {"quantization": "nf4"},
            "training": {"gradient_checkpointing": True},
        },
    ),
    ("IA3", {"adapter": {"method": "ia3"}, "model": {"quantization": "none"}}),
    (
        "Prefix tuning",
        {
            "adapter": {"method": "prefix_tuning"},
            "model": {"quantization": "none"},
            "training": {"gradient_checkpointing": False},
        },
    ),
)


def changed(config: RunConfig, sections: dict[str, dict[str, Any]]) -> RunConfig:
    """Copy a configuration with some fields set; values are trusted to be valid."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
    )


def compare_methods(shape: ModelShape, config: RunConfig, device: "Device") -> tuple[MethodNeed, ...]:
    """Estimate every method with the other settings of `config` as they are."""
    rows = []
    for name, sections in _METHODS:
        other = changed(config, sections)
        overrides = tuple(
            f"{section}.{field}={str(value).lower() if isinstance(value, bool) else value}"
            for section, fields in sections.items()
            for field, value in fields.items()
        )
        try:
            estimate = estimate_memory(shape, other, device)
        except EngineError as error:
            rows.append(
                MethodNeed(method=name, needed_bytes=None, verdict=None, why_not=error.what, overrides=overrides)
            )
            continue
        rows.append(
            MethodNeed(
                method=name,
                needed_bytes=estimate.needed_bytes,
                verdict=estimate.verdict,
                trainable=estimate.parameters.trainable,
                overrides=overrides,
                is_current=other == config,
            )
        )
    return tuple(rows)

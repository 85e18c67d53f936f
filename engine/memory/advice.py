"""What would make a run fit: single changes and the best combination, ordered by what they cost the person."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.memory.estimate import MemoryEstimate, Verdict, estimate_memory
from engine.memory.methods import changed
from engine.models.shape import ModelShape

if TYPE_CHECKING:
    from engine.hardware.devices import Device


class AdvisedChange(BaseModel):
    """One change, or several together, and what the run needs afterwards."""

    model_config = ConfigDict(frozen=True)

    change: str  # plain words, for a button
    cost: str  # what it costs the person, in a few words
    needed_bytes: int
    verdict: Verdict
    overrides: tuple[str, ...]  # section.field=value; one click applies them


class Advice(BaseModel):
    """The answer to the next question."""

    model_config = ConfigDict(frozen=True)

    changes: tuple[AdvisedChange, ...]
    longest_max_length: int | None  # that fits with everything else as it is; None where nothing fits
    largest_batch_size: int | None


def advise(shape: ModelShape, config: RunConfig, device: "Device") -> Advice:
    """Find what makes `config` fit on `device`, or how much room is left."""
    changes = []
    candidates: list[tuple[str, str, dict[str, dict[str, Any]]]] = []
    if not config.training.gradient_checkpointing and config.adapter.method != "prefix_tuning":
        candidates.append(
            (
                "Switch gradient checkpointing on",
                "about a third slower",
                {"training": {"gradient_checkpointing": True}},
            )
        )
    if config.model.quantization != "nf4" and config.adapter.method != "none":
        candidates.append(
            (
                "Hold the frozen weights in nf4 (QLoRA)",
                "slower, and slightly less exact",
                {"model": {"quantization": "nf4"}},
            )
        )
    if config.training.per_device_train_batch_size > 1:
        candidates.append(
            (
                "Batch of 1, accumulating more",
                "slower",
                {
                    "training": {
                        "per_device_train_batch_size": 1,
                        "gradient_accumulation_steps": config.training.gradient_accumulation_steps
                        * config.training.per_device_train_batch_size,
                    }
                },
            )
        )
    for words, cost, sections in candidates:
        estimate = estimate_memory(shape, changed(config, sections), device)
        changes.append(
            AdvisedChange(
                change=words,
                cost=cost,
                needed_bytes=estimate.needed_bytes,
                verdict=estimate.verdict,
                overrides=tuple(
                    f"{section}.{field}={str(value).lower() if isinstance(value, bool) else value}"
                    for section, fields in sections.items()
                    for field, value in fields.items()
                ),
            )
        )
    return Advice(
        changes=tuple(changes),
        longest_max_length=_largest(
            lambda value: estimate_memory(shape, changed(config, {"training": {"max_length": value}}), device),
            shape.max_position_embeddings or 131_072,
        ),
        largest_batch_size=_largest(
            lambda value: estimate_memory(
                shape, changed(config, {"training": {"per_device_train_batch_size": value}}), device
            ),
            4096,
        ),
    )


def _largest(estimate_of: Any, upper: int) -> int | None:
    def fits(value: int) -> bool:
        estimate: MemoryEstimate = estimate_of(value)
        return estimate.verdict == "fits"

    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low or None

"""What would make a run fit: single changes and the best combination, ordered by what they cost the person."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.memory.estimate import Verdict, estimate_memory
from engine.memory.methods import changed
from engine.models.shape import ModelShape

if TYPE_CHECKING:
    from engine.hardware.devices import Device

_SEARCH_STEPS = 9  # estimates that one limit may cost
_CLOSE_ENOUGH = 64  # a limit is found when it is known to one part in so many
_LARGEST_BATCH = 256  # what more would be good for is accumulated
_SHORTEST_ADVISED = 128  # tokens; shorter rows teach another task


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

    changes: tuple[
        AdvisedChange, ...
    ]  # single changes, cheapest first; then, if none suffices, the combination that does
    longest_max_length: int | None  # that fits with everything else as it is; None where nothing fits
    largest_batch_size: int | None


class _Candidate(NamedTuple):
    change: str
    cost: str
    sections: dict[str, dict[str, Any]]


def advise(shape: ModelShape, config: RunConfig, device: "Device") -> Advice:
    """Find what makes `config` fit on `device`, or how much room is left.

    Raises:
        ConfigError: If the adapter matches no module of the model.
    """
    candidates = _candidates(config, device)
    changes = [_judged(shape, config, device, candidate) for candidate in candidates]
    if changes and not any(change.verdict == "fits" for change in changes):
        combination = _combination(shape, config, device, candidates)
        if combination is not None:
            changes.append(combination)
    training = config.training
    return Advice(
        changes=tuple(changes),
        longest_max_length=_largest(
            lambda value: _needed(shape, changed(config, {"training": {"max_length": value}}), device),
            device.free_bytes,
            training.max_length,
            shape.max_position_embeddings or 131_072,
        ),
        largest_batch_size=_largest(
            lambda value: _needed(shape, changed(config, {"training": {"per_device_train_batch_size": value}}), device),
            device.free_bytes,
            training.per_device_train_batch_size,
            _LARGEST_BATCH,
        ),
    )


def _candidates(config: RunConfig, device: "Device") -> list[_Candidate]:
    """Changes that lessen the need, from those that cost only time to those that cost quality."""
    training = config.training
    found: list[_Candidate] = []
    batch, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if batch > 1:
        smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": min(accumulated * batch, 65_536)}
        found.append(_Candidate("Batch of 1, accumulating more", "slower, same result", {"training": smaller}))
    if not training.gradient_checkpointing and config.adapter.method != "prefix_tuning":
        sections: dict[str, dict[str, Any]] = {"training": {"gradient_checkpointing": True}}
        found.append(_Candidate("Switch gradient checkpointing on", "about a third slower, same result", sections))
    if device.kind == "cuda" and training.optim in ("adamw_torch", "adamw_torch_fused"):
        sections = {"training": {"optim": "paged_adamw_8bit"}}
        found.append(_Candidate("Optimizer state in 8 bits, paged", "nearly the same result", sections))
    if config.adapter.method != "none" and config.model.quantization in ("none", "int8"):
        sections = {"model": {"quantization": "nf4"}}
        found.append(_Candidate("Hold the frozen weights in nf4 (QLoRA)", "slower, slightly less exact", sections))
    if config.adapter.method == "none":
        sections = {"adapter": {"method": "lora"}}
        found.append(_Candidate("Train a LoRA instead of everything", "learns less new knowledge", sections))
    if training.max_length >= 2 * _SHORTEST_ADVISED:
        half = training.max_length // 2
        sections = {"training": {"max_length": half}}
        found.append(_Candidate(f"Cut rows at {half:,} tokens", "longer rows lose their end", sections))
    return found


def _judged(shape: ModelShape, config: RunConfig, device: "Device", candidate: _Candidate) -> AdvisedChange:
    estimate = estimate_memory(shape, changed(config, candidate.sections), device)
    return AdvisedChange(
        change=candidate.change,
        cost=candidate.cost,
        needed_bytes=estimate.needed_bytes,
        verdict=estimate.verdict,
        overrides=_overrides(candidate.sections),
    )


def _combination(
    shape: ModelShape, config: RunConfig, device: "Device", candidates: list[_Candidate]
) -> AdvisedChange | None:
    """The shortest row of changes, cheapest first, that fits together; None where even all of them do not."""
    sections: dict[str, dict[str, Any]] = {}
    words: list[str] = []
    for candidate in candidates:
        for name, fields in candidate.sections.items():
            sections[name] = {**sections.get(name, {}), **fields}
        words.append(candidate.change[:1].lower() + candidate.change[1:] if words else candidate.change)
        if len(words) < 2:
            continue
        together = _Candidate("; ".join(words), "all of them together", sections)
        change = _judged(shape, config, device, together)
        if change.verdict == "fits":
            return change
    return None


def _overrides(sections: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    return tuple(
        f"{section}.{field}={str(value).lower() if isinstance(value, bool) else value}"
        for section, fields in sections.items()
        for field, value in fields.items()
    )


def _needed(shape: ModelShape, config: RunConfig, device: "Device") -> int:
    return estimate_memory(shape, config, device).needed_bytes


def _largest(needed: Callable[[int], int], free_bytes: int, start: int, upper: int) -> int | None:
    """The largest value whose need fits, known to one part in `_CLOSE_ENOUGH`; what is returned does fit.

    The need grows steadily, so each try interpolates between the nearest known values on both sides.

    Args:
        needed: Bytes for a value.
        free_bytes: What there is.
        start: Tried first: the value of the draft.
        upper: Nothing above it is tried.
    """
    low, low_bytes = 0, 0
    high, high_bytes = upper + 1, 0
    value = max(1, min(start, upper))
    for _ in range(_SEARCH_STEPS):
        bytes_here = needed(value)
        if bytes_here <= free_bytes:
            low, low_bytes = value, bytes_here
        else:
            high, high_bytes = value, bytes_here
        if high - low <= 1 + low // _CLOSE_ENOUGH:
            break
        if high_bytes and low:
            share = (free_bytes - low_bytes) / (high_bytes - low_bytes)
            guess = low + round(share * (high - low))
        elif high_bytes:
            guess = value // 2
        else:
            # Nothing was too large so far. What does not depend on the value makes this guess a little low, never wild.
            guess = min(2 * low + 1, upper) if low_bytes * 2 > free_bytes else min(low * 4, upper)
        value = max(low + 1, min(guess, high - 1))
    return low or None

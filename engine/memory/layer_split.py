"""Divide the layers of one model among several devices, which work in turn.

Estimate and worker use the same division. It depends on the configuration and the number of devices and not on what is
free, so a resumed run finds every layer where it was.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice

from loratory.engine.errors import ConfigError, Problem
from loratory.engine.memory.persistent import weight_bytes
from loratory.engine.memory.structure import AdapterTargets, decoder_layers
from loratory.engine.memory.workload import Workload
from loratory.engine.models.shape import ModelShape, ModuleShape


@dataclass(frozen=True)
class DevicePart:
    """What one of the devices holds."""

    layers: tuple[str, ...]  # full names, in order
    outside: tuple[str, ...]  # modules that are in no layer: embeddings, final norm, output head
    modules: frozenset[str]  # full names of all that own parameters, in layers and outside
    has_embeddings: bool
    has_head: bool


def divide_layers(
    shape: ModelShape, workload: Workload, devices: int, *, kept_bytes: int = 0, times_weights: float = 1.0
) -> tuple[DevicePart, ...]:
    """Divide a model with the least possible maximum of what a device holds.

    The first device has what comes before the layers, the last one what comes behind them. An output head that shares its
    weight with the embeddings stays with them. What does not divide evenly is missing on the last device, which has other
    work too.

    Args:
        kept_bytes: What each layer keeps for the backward pass.
        times_weights: How many bytes stay for each byte of weights: gradients and optimizer state, where all are trained.

    Raises:
        ConfigError: If there are fewer layers than devices.
        ModelError: If no layers are found in the model.
    """
    layers = decoder_layers(shape)
    if len(layers) < devices:
        message = f"{shape.architecture} has {len(layers)} layers, which cannot be divided among {devices} devices."
        raise ConfigError([Problem("run.devices", f"{message} Name at most {len(layers)}.")])
    first, last = _outside(shape, {module.name for members in layers.values() for module in members})
    logits = min(workload.loss.chunk_bytes, workload.tokens * shape.vocab_size * 4)
    head_is_first = any(module.is_output_head for module in first)

    def resident(modules: Iterable[ModuleShape]) -> int:
        return round(sum(weight_bytes(modules, workload)) * times_weights)

    counts = divide(
        [resident(members) + kept_bytes for members in layers.values()],
        resident(first) + (logits if head_is_first else 0),
        resident(last) + (0 if head_is_first else logits),
        devices,
    )
    remaining, parts = iter(layers.items()), []
    for number, count in enumerate(counts):
        own = dict(islice(remaining, count))
        outside = (*(first if number == 0 else ()), *(last if number == devices - 1 else ()))
        modules = frozenset(module.name for module in chain(outside, *own.values()))
        has_head = any(module.is_output_head for module in outside)
        parts.append(DevicePart(tuple(own), tuple(module.name for module in outside), modules, number == 0, has_head))
    return tuple(parts)


def divide(layer_bytes: Sequence[int], first_bytes: int, last_bytes: int, devices: int) -> tuple[int, ...]:
    """Return how many layers each device gets, at least one, with the least possible maximum of what one holds.

    Args:
        layer_bytes: Of each layer, in order; at least as many as devices.
        first_bytes: What the first device holds besides its layers; `last_bytes` is that of the last one.
    """
    fill = partial(_fill, layer_bytes, first_bytes, last_bytes, devices)
    everything = first_bytes + sum(layer_bytes) + last_bytes
    counts = fill(bisect_left(range(everything), True, key=lambda most: fill(most) is not None))
    assert counts is not None  # everything on one device always fits
    return counts


def _fill(
    layer_bytes: Sequence[int], first_bytes: int, last_bytes: int, devices: int, most: int
) -> tuple[int, ...] | None:
    """Fill one device after the other up to `most` bytes; None where that does not hold everything."""
    counts, used = [], 0
    for number in range(devices):
        room = most - (first_bytes if number == 0 else 0) - (last_bytes if number == devices - 1 else 0)
        later = devices - number - 1  # that need a layer each
        count = bisect_right(list(accumulate(layer_bytes[used : len(layer_bytes) - later])), room)
        if count == 0:
            return None
        counts.append(count)
        used += count
    return tuple(counts) if used == len(layer_bytes) else None


def shape_of_part(shape: ModelShape, part: DevicePart) -> ModelShape:
    """Return the part of a model on one device."""
    modules = tuple(module for module in shape.modules if module.name in part.modules)
    parameters = sum(module.parameters for module in modules)
    sizes = {"modules": modules, "num_hidden_layers": len(part.layers), "num_parameters": parameters}
    return shape.model_copy(update=sizes)


def targets_of_part(targets: AdapterTargets, part: DevicePart) -> AdapterTargets:
    """Return the part of an adapter on one device."""
    return AdapterTargets(
        modules=tuple(module for module in targets.modules if module.name in part.modules),
        saved_in_full=tuple(module for module in targets.saved_in_full if module.name in part.modules),
    )


def _outside(shape: ModelShape, in_layers: set[str]) -> tuple[list[ModuleShape], list[ModuleShape]]:
    """Return what the first and the last device hold besides layers."""
    before: list[ModuleShape] = []
    behind: list[ModuleShape] = []
    seen_layers = False
    for module in shape.modules:
        if module.name in in_layers:
            seen_layers = True
        elif module.is_output_head:
            (before if module.tied_to is not None else behind).append(module)
        else:
            # Families differ in the order in which they register embeddings; norms behind the layers are the last ones.
            (behind if seen_layers and module.kind == "norm" else before).append(module)
    return before, behind

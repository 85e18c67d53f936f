"""What one of several devices holds that divide a model among them (FSDP)."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple

from engine.memory.persistent import Persistent, is_quantized, quantized_bytes
from engine.memory.phases import Held, Phase
from engine.memory.structure import ModelStructure
from engine.memory.workload import Workload
from engine.models.shape import ModuleShape

# While one layer computes, the next one's weights arrive: `BackwardPrefetch.BACKWARD_PRE`.
_LAYERS_GATHERED = 2


def fully_sharded(
    structure: ModelStructure, workload: Workload, persistent: Persistent, peaks: Mapping[Phase, Held]
) -> tuple[Persistent, dict[Phase, Held]]:
    """Divide what stays; what passes through is each device's own; two layers are whole at a time.

    What stands outside of the layers is whole for the whole step. A layer's gradients are whole until they are summed up
    and divided.

    Source: Zhao et al. 2023, "PyTorch FSDP", sections 3.2 and 4 (arXiv:2304.11277): FULL_SHARD with one unit for each
    decoder layer; torch/distributed/fsdp.
    """
    devices = workload.sharded
    layers = [(_gathered_bytes(layer.modules, workload), layer.count) for layer in structure.layers]
    largest = max(size for size, _ in layers)
    outside = (*structure.embeddings, *structure.final_norms, *([structure.head] if structure.head else []))
    whole = _gathered_bytes(outside, workload)
    shares = {}
    for phase, held in peaks.items():
        # The optimizer works on its own share; before that, layers are put together and learn as a whole.
        copies = 0 if phase == "optimizer_step" else whole + _LAYERS_GATHERED * largest
        learned = held.gradients // structure.num_layers if phase == "layer_backward" else 0
        shares[phase] = held._replace(
            gradients=_divided(held.gradients, devices) + learned,
            weight_copies=held.weight_copies + copies,
        )
    return Persistent(*(_divided(size, devices) for size in astuple(persistent))), shares


def _divided(size: int, devices: int) -> int:
    return -(-size // devices)


def _gathered_bytes(modules: Iterable[ModuleShape], workload: Workload) -> int:
    """Some modules, whole: packed where they are quantized, else as wide as products are computed."""
    return sum(
        quantized_bytes(module, workload)
        if is_quantized(module, workload)
        else module.parameters * workload.precision.compute
        for module in modules
    )

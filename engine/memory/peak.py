"""The memory peak of a training step: its phase, and the tensors that are alive then."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

from loratory.engine.errors import ModelError
from loratory.engine.hardware.device import Device
from loratory.engine.memory import persistent as persistent_tensors
from loratory.engine.memory.device_need import TensorsAtPeak, is_hopper
from loratory.engine.memory.phases import BytesByGroup, Phase, StepPeaks
from loratory.engine.memory.structure import ModelStructure
from loratory.engine.memory.workload import StepPrecision, Workload
from loratory.engine.models.shape import ModelShape

# While one layer computes, the next one's weights arrive: `BackwardPrefetch.BACKWARD_PRE`.
_LAYERS_GATHERED = 2


@dataclass(frozen=True)
class Peak:
    """The highest point of a step: what is always there, what the phase adds, and each phase's own peak."""

    persistent: persistent_tensors.Persistent
    counts: persistent_tensors.TrainableCount
    phase: Phase
    group_bytes: BytesByGroup
    phase_bytes: dict[Phase, int]  # allocated at the peak of each phase
    kept_bytes: int  # activations that all layers together keep for the backward pass
    is_approximate: bool  # some layers are estimated by the size of their products alone
    tensors: TensorsAtPeak


def find_peak(
    step: StepPeaks,
    structure: ModelStructure,
    workload: Workload,
    device: Device,
    counts: persistent_tensors.TrainableCount,
) -> Peak:
    """Find the phase in which most tensors are alive: `persistent + max(forward, loss, layers, optimizer)`."""
    persistent = persistent_tensors.persistent_bytes(structure, workload, counts)
    peaks = dict(step.peaks)
    peaks["optimizer_step"] += BytesByGroup(
        gradients=persistent_tensors.optimizer_scratch_bytes(counts.groups, workload.optimizer)
    )
    workspace = workspace_bytes(workload, device)
    if workload.accumulates:
        waiting = BytesByGroup(gradients=persistent_tensors.gradient_bytes(structure, workload, counts))
        peaks = {phase: group_bytes + waiting for phase, group_bytes in peaks.items()}
    if structure.tower is not None and workload.pixels:
        pixel_bytes = structure.tower.pixel_bytes(workload.pixels * workload.held_passes)
        peaks = {phase: group_bytes + BytesByGroup(activations=pixel_bytes) for phase, group_bytes in peaks.items()}
    if workload.sharded > 1:
        persistent, peaks = fully_sharded(structure, workload, persistent, peaks)
    phase_bytes = {name: persistent.total + workspace + group_bytes.total for name, group_bytes in peaks.items()}
    phase = max(peaks, key=lambda name: phase_bytes[name])
    passing = peaks[phase].total - peaks[phase].gradients
    return Peak(
        persistent=persistent,
        counts=counts,
        phase=phase,
        group_bytes=peaks[phase],
        phase_bytes=phase_bytes,
        kept_bytes=step.peaks["loss_backward"].activations,
        is_approximate=structure.is_approximate,
        tensors=TensorsAtPeak(
            allocated_bytes=phase_bytes[phase],
            passing_bytes=passing,
            layer_bytes=step.layer_bytes,
            paged_bytes=persistent.paged,
            loading_bytes=persistent.loading,
            uncertain_bytes=passing // 2 if structure.is_approximate else 0,
            apart_bytes=_apart_bytes(peaks, workload),
        ),
    )


def _apart_bytes(peaks: Mapping[Phase, BytesByGroup], workload: Workload) -> int:
    """Return what the heap may hold more where answers and steps take about as much.

    Four runs on two cores in which both were alike took 116 to 359 MiB more than the larger of the two alone; seven whose
    steps took more than twice as much as their answers took no more.
    """
    if workload.device != "cpu" or "answers" not in peaks:
        return 0
    step = max(group_bytes.total for name, group_bytes in peaks.items() if name != "answers")
    less, most = sorted((peaks["answers"].total, step))
    return max(0, 2 * less - most)


def workspace_bytes(workload: Workload, device: Device) -> int:
    """Workspaces of cuBLAS, which PyTorch takes from its own allocator: one for the thread of the forward pass and one
    for that of the backward pass.

    Source: `parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp: 8,320 KiB, on Hopper 32 MiB.
    """
    if workload.device == "cpu":
        return 0
    return 2 * (32 * 2**20 if is_hopper(device) else 8320 * 2**10)


def require_sizes(shape: ModelShape) -> None:
    """Raise `ModelError` if the model's shape lacks what a decoder needs."""
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
    missing = [name for name in needed if getattr(shape, name) < 1]
    if missing:
        fix = "Use the config.json of the original model."
        raise ModelError(f"The configuration of {shape.architecture} gives no {', '.join(missing)}.", fix)


def fully_sharded(
    structure: ModelStructure,
    workload: Workload,
    persistent: persistent_tensors.Persistent,
    peaks: Mapping[Phase, BytesByGroup],
) -> tuple[persistent_tensors.Persistent, dict[Phase, BytesByGroup]]:
    """Divide what stays; what passes through is each device's own; two layers are whole at a time.

    What is outside the layers is whole for the whole step. A layer's gradients are whole until they are summed up
    and divided.

    Source: Zhao et al. 2023, "PyTorch FSDP", sections 3.2 and 4 (arXiv:2304.11277): FULL_SHARD with one unit for each
    decoder layer; torch/distributed/fsdp.
    """
    devices = workload.sharded
    compute = workload.precision.compute
    in_layers = replace(workload, precision=StepPrecision(compute, compute, compute, compute, compute))
    largest = max(sum(persistent_tensors.weight_bytes(layer.modules, in_layers)) for layer in structure.layers)
    outside = [*structure.embeddings, *structure.final_norms, *([structure.head] if structure.head else [])]
    outside += [module for module in structure.shape.modules if module.part is not None]
    whole = sum(persistent_tensors.weight_bytes(outside, workload))
    # Layers that are trained whole are gathered in the dtype of their products, so autocast copies the head alone.
    rounds = not workload.trains_adapter and workload.precision.autocast is not None
    head_copy = structure.shape.vocab_size * structure.shape.hidden_size * compute
    shares = {}
    for phase, group_bytes in peaks.items():
        # The optimizer works on its own share; before that, layers are put together and trained as a whole.
        copies = 0 if phase == "optimizer_step" else whole + _LAYERS_GATHERED * largest
        layer_gradients = group_bytes.gradients // structure.num_layers if phase == "layer_backward" else 0
        shares[phase] = group_bytes._replace(
            gradients=_share_of(group_bytes.gradients, devices) + layer_gradients,
            weight_copies=(min(group_bytes.weight_copies, head_copy) if rounds else group_bytes.weight_copies) + copies,
        )
    own_share = persistent_tensors.Persistent(*(_share_of(size, devices) for size in astuple(persistent)))
    return replace(own_share, loading=persistent.loading), shares  # each process loads the whole model


def _share_of(size: int, devices: int) -> int:
    return -(-size // devices)

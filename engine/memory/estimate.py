"""How much memory a run needs, in which phase, and whether that fits."""

from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.errors import ConfigError, ModelError, Problem
from engine.hardware.device import Device
from engine.memory.allocator import DeviceNeed, need_on_device
from engine.memory.components import describe_components
from engine.memory.formulas import optimizer_scratch_bytes
from engine.memory.persistent import Persistent, persistent_bytes
from engine.memory.phases import Held, Phase, StepPeaks, rehearse_step
from engine.memory.result import GIB, MemoryEstimate, ParameterCount, Verdict
from engine.memory.run_workload import workload_of_run
from engine.memory.structure import ModelStructure, read_structure
from engine.memory.targets import find_targets
from engine.memory.trainable import TrainableCount, count_trainable
from engine.memory.workload import Workload
from engine.models.shape import ModelShape

__all__ = ["GIB", "MemoryEstimate", "Peak", "Verdict", "estimate_memory", "estimate_workload", "predict_peak"]

# Beyond these a figure would be an answer to a question that nobody means.
_LARGEST_LENGTH = 16_777_216
_LARGEST_BATCH = 1_048_576


@dataclass(frozen=True)
class Peak:
    """The highest point of a step: what is always there, what the phase adds, and each phase's own peak."""

    persistent: Persistent
    counts: TrainableCount
    phase: Phase
    held: Held
    phase_bytes: dict[Phase, int]  # allocated at the peak of each phase
    workspace_bytes: int

    @property
    def allocated_bytes(self) -> int:
        return self.phase_bytes[self.phase]


def estimate_memory(shape: ModelShape, config: RunConfig, device: Device) -> MemoryEstimate:
    """Predict the peak memory of one training step of `config` on `device`.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs.
    """
    return estimate_workload(read_structure(shape), workload_of_run(shape, config, device), device)


def estimate_workload(structure: ModelStructure, workload: Workload, device: Device) -> MemoryEstimate:
    """The same for a step that is described already.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs.
    """
    peak = predict_peak(structure, workload, device.name)
    need = need_on_device(peak.allocated_bytes, workload, device, paged_bytes=peak.persistent.paged)
    counts = peak.counts
    return MemoryEstimate(
        parameters=ParameterCount(total=counts.total, trainable=counts.trainable, trainable_percent=counts.percent),
        components=describe_components(peak.persistent, peak.held, need, workload, peak.workspace_bytes),
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=need.reserved_bytes,
        expected_bytes=need.expected_bytes,
        needed_bytes=need.needed_bytes,
        phase=peak.phase,
        phases_bytes=peak.phase_bytes,
        verdict=judge(need, device),
        device_name=device.name,
        device_kind=device.kind,
        free_bytes=device.free_bytes,
        total_bytes=device.total_bytes,
        notes=_notes(workload, peak.persistent),
    )


def predict_peak(structure: ModelStructure, workload: Workload, device_name: str = "") -> Peak:
    """Find the phase in which most tensors are alive: `persistent + max(forward, loss, layers, optimizer)`.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs.
    """
    _refuse_nonsense(structure.shape, workload)
    adapter = workload.adapter
    targets = find_targets(structure.shape, adapter)
    counts = count_trainable(structure.shape, adapter, targets)
    persistent = persistent_bytes(structure, workload, counts)
    step = rehearse_step(structure, workload, targets)
    peaks = _with_optimizer(step, workload, counts)
    workspace = workspace_bytes(workload, device_name)
    base = persistent.total + workspace
    if workload.accumulates:
        peaks = _with_waiting_gradients(peaks, step.gradients_bytes)
    phase = max(peaks, key=lambda name: peaks[name].total)
    return Peak(
        persistent=persistent,
        counts=counts,
        phase=phase,
        held=peaks[phase],
        phase_bytes={name: base + held.total for name, held in peaks.items()},
        workspace_bytes=workspace,
    )


def _with_optimizer(step: StepPeaks, workload: Workload, counts: TrainableCount) -> dict[Phase, Held]:
    scratch = optimizer_scratch_bytes(counts.sizes, workload.optimizer)
    end = step.peaks["optimizer_step"]
    return {**step.peaks, "optimizer_step": end.plus(Held(gradients=scratch))}


def _with_waiting_gradients(peaks: dict[Phase, Held], gradients_bytes: int) -> dict[Phase, Held]:
    """Gradients of earlier passes are there from the start; the backward pass adds to them instead of making them."""
    waiting = Held(gradients=gradients_bytes)
    return {
        phase: held
        if phase == "optimizer_step"
        else Held(held.activations, held.loss, 0, held.weight_copies).plus(waiting)
        for phase, held in peaks.items()
    }


def workspace_bytes(workload: Workload, device_name: str) -> int:
    """Workspaces of cuBLAS, which PyTorch takes from its own allocator: one for the thread of the forward pass and one
    for that of the backward pass.

    Source: `parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp: 8,320 KiB, on Hopper 32 MiB.
    """
    if workload.device == "cpu":
        return 0
    hopper = any(name in device_name.upper() for name in ("H100", "H200", "H800", "H20", "GH200"))
    return 2 * (32 * 2**20 if hopper else 8320 * 2**10)


def judge(need: DeviceNeed, device: Device) -> Verdict:
    """Compare with the free memory: the bound must fit; where only the expectation does, it is tight."""
    if need.needed_bytes <= device.free_bytes:
        return "fits"
    return "tight" if need.expected_bytes <= device.free_bytes else "does_not_fit"


def _refuse_nonsense(shape: ModelShape, workload: Workload) -> None:
    missing = [
        name
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
        if getattr(shape, name) < 1
    ]
    if missing:
        raise ModelError(
            f"The configuration of {shape.architecture} gives no {', '.join(missing)}.",
            "Use the config.json of the original model.",
        )
    problems = []
    for field, value, largest in (
        ("training.per_device_train_batch_size", workload.batch_size, _LARGEST_BATCH),
        ("training.max_length", workload.length, _LARGEST_LENGTH),
    ):
        if not 1 <= value <= largest:
            problems.append(Problem(field, f"{value:,} is out of range; it must be from 1 to {largest:,}."))
    if problems:
        raise ConfigError(problems)


def _notes(workload: Workload, persistent: Persistent) -> tuple[str, ...]:
    notes = []
    if workload.attention == "math":
        notes.append(
            "This GPU has no fused attention kernel for grouped-query heads, so the scores of all heads are written out: "
            "memory grows with the square of the length."
        )
    if persistent.paged:
        notes.append(
            f"{persistent.paged / GIB:.2f} GiB of optimizer state can move to main memory when the device is full."
        )
    if workload.base == "int8" and workload.checkpointing != "none":
        notes.append("int8 layers keep their inputs, so that gradient checkpointing saves less than elsewhere.")
    return tuple(notes)

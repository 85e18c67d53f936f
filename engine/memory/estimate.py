"""How much memory a run needs, in which phase, and whether that fits."""

from typing import NamedTuple

from engine.config.run import AdapterConfig, RunConfig
from engine.hardware.device import Device
from engine.memory.device.device_need import DeviceNeed, need_on_device
from engine.memory.device.layer_split import DevicePart, divide_layers, shape_of_part, targets_of_part, workload_of_part
from engine.memory.peak import Peak, find_peak, refuse_nonsense
from engine.memory.persistent import Persistent, base_weight_bytes
from engine.memory.phases import Held
from engine.memory.result import GIB, MemoryComponent, MemoryEstimate, ParameterCount, Verdict
from engine.memory.run_workload import workload_of_run, workload_of_step
from engine.memory.structure import read_structure
from engine.memory.targets import AdapterTargets, find_targets
from engine.memory.trainable import TrainableCount, count_trainable
from engine.memory.workload import Workload
from engine.models.shape import ModelShape

__all__ = ["GIB", "Estimator", "MemoryEstimate", "Verdict", "estimate_memory"]


def estimate_memory(shape: ModelShape, config: RunConfig, device: Device) -> MemoryEstimate:
    """Predict the peak memory of a training run of `config` on `device`, over all its steps.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs; MemoryUnknownError if it has no layers of known size.
    """
    return Estimator(shape, device).estimate(config)


class DeviceStep(NamedTuple):
    """One device's share of a step whose layers are spread over several."""

    part: DevicePart
    workload: Workload
    peak: Peak


class Estimator:
    """Estimates of many configurations for one model and device; what they share is worked out once."""

    def __init__(self, shape: ModelShape, device: Device) -> None:
        self.shape = shape
        self.device = device
        self.structure = read_structure(shape)
        self._known: list[tuple[AdapterConfig, AdapterTargets, TrainableCount]] = []

    def estimate(self, config: RunConfig) -> MemoryEstimate:
        """The whole answer; raises as `estimate_memory` does.

        Where layers are spread over several devices, the answer is about the one that needs most.
        """
        return self._estimated(config, workload_of_run(self.shape, config, self.device))

    def estimate_step(self, config: RunConfig) -> MemoryEstimate:
        """The answer for one step of the longest rows alone, as a measurement takes it; raises as `estimate_memory` does.

        A run may need more than that in a step of shorter rows, which counts in `estimate`.
        """
        return self._estimated(config, workload_of_step(self.shape, config, self.device))

    def _estimated(self, config: RunConfig, workload: Workload) -> MemoryEstimate:
        if config.run.spread_over == 1:
            return describe_peak(self.peak(workload), workload, self.device)
        device_steps = self.split_layers(workload, config.run.spread_over)
        needs = [need_on_device(one.peak.tensors, one.workload, self.device).needed_bytes for one in device_steps]
        number = needs.index(max(needs))
        fullest = device_steps[number]
        whole = self._adapted(workload.adapter)[1]
        estimate = describe_peak(fullest.peak, fullest.workload, self.device)
        note = (
            f"These are figures of the fullest of {len(device_steps)} devices, number {number + 1} in run.devices: it holds "
            f"{_part_words(fullest.part)}. They need {', '.join(f'{need / GIB:.1f}' for need in needs)} GiB at most."
        )
        return estimate.model_copy(update={"parameters": _parameters(whole), "notes": (*estimate.notes, note)})

    def need(self, config: RunConfig) -> DeviceNeed:
        """Only what decides whether it fits; raises as `estimate_memory` does."""
        workload = workload_of_run(self.shape, config, self.device)
        if config.run.spread_over == 1:
            return need_on_device(self.peak(workload).tensors, workload, self.device)
        return max(self.split_needs(workload, config.run.spread_over), key=lambda need: need.needed_bytes)

    def split_needs(self, workload: Workload, devices: int) -> tuple[DeviceNeed, ...]:
        """What each of several devices like this one needs where the layers are divided among them, in order."""
        return tuple(
            need_on_device(one.peak.tensors, one.workload, self.device) for one in self.split_layers(workload, devices)
        )

    def split_layers(self, workload: Workload, devices: int) -> tuple["DeviceStep", ...]:
        """The same step as each of several devices takes part in it; raises as `estimate_memory` does, and:

        Raises:
            ConfigError: If there are fewer layers than devices.
        """
        targets, _ = self._adapted(workload.adapter)
        steps: list[DeviceStep] = []
        for part in self.parts(workload, devices):
            known = next((one for one in steps if self._is_equal(one.part, part)), None)
            if known is not None:
                steps.append(known._replace(part=part))
                continue
            shape, own = shape_of_part(self.shape, part), workload_of_part(workload, part)
            part_targets = targets_of_part(targets, part)
            counts = count_trainable(shape, workload.adapter, part_targets)
            steps.append(
                DeviceStep(part, own, find_peak(read_structure(shape), own, self.device.name, part_targets, counts))
            )
        return tuple(steps)

    def parts(self, workload: Workload, devices: int) -> tuple[DevicePart, ...]:
        """Return which layers each of several devices holds; raises as `split_layers` does."""
        whole = self.peak(workload)
        weights = sum(base_weight_bytes(self.structure, workload))
        trained = 0 if workload.trains_adapter else whole.persistent.optimizer + weights
        return divide_layers(
            self.shape,
            workload,
            devices,
            kept_bytes=whole.kept_bytes // self.structure.num_layers,
            times_weights=1 + trained / max(1, weights),
        )

    def _is_equal(self, one: DevicePart, other: DevicePart) -> bool:
        """Whether two devices do the same: as many layers of one kind, and nothing else."""
        return (
            len(self.structure.layers) == 1
            and len(one.layers) == len(other.layers)
            and one.outside == other.outside == ()
        )

    def peak(self, workload: Workload) -> Peak:
        """The peak of a step that is described already; raises as `estimate_memory` does."""
        refuse_nonsense(self.shape, workload)
        return find_peak(self.structure, workload, self.device.name, *self._adapted(workload.adapter))

    def _adapted(self, adapter: AdapterConfig) -> tuple[AdapterTargets, TrainableCount]:
        for known, targets, counts in self._known:
            if known is adapter:
                return targets, counts
        targets = find_targets(self.shape, adapter)
        counts = count_trainable(self.shape, adapter, targets)
        self._known.append((adapter, targets, counts))
        return targets, counts


def describe_peak(peak: Peak, workload: Workload, device: Device) -> MemoryEstimate:
    """Add to the peak what surrounds the tensors, name the parts, and judge."""
    need = need_on_device(peak.tensors, workload, device)
    return MemoryEstimate(
        parameters=_parameters(peak.counts),
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
        notes=_notes(workload, peak, device),
    )


def _parameters(counts: TrainableCount) -> ParameterCount:
    return ParameterCount(total=counts.total, trainable=counts.trainable, trainable_percent=counts.percent)


def _part_words(part: DevicePart) -> str:
    extras = [
        word for word, is_there in (("embeddings", part.has_embeddings), ("output head", part.has_head)) if is_there
    ]
    return " and ".join([f"{len(part.layers)} layers", *extras])


def judge(need: DeviceNeed, device: Device) -> Verdict:
    """Compare with the free memory: the bound must fit; where only the expectation does, it is tight."""
    if need.needed_bytes <= device.free_bytes:
        return "fits"
    return "tight" if need.expected_bytes <= device.free_bytes else "does_not_fit"


def _notes(workload: Workload, peak: Peak, device: Device) -> tuple[str, ...]:
    notes, persistent = [], peak.persistent
    if device.kind == "mps":
        notes.append(
            "Figures for Apple's GPU are put together from the sizes of tensors and were never measured; the bound is wider "
            "for it."
        )
    if peak.is_approximate:
        notes.append(
            "Some layers of this model are not plain attention. Their activations are estimated by the size of their "
            "products, and the bound is wider for it."
        )
    if workload.attention == "math":
        notes.append(
            "This GPU has no fused attention kernel for such a step, so the scores of all heads are written out: memory "
            "grows with the square of the length."
        )
    if persistent.paged:
        notes.append(
            f"{persistent.paged / GIB:.2f} GiB of optimizer state can move to main memory when the device is full."
        )
    weights = persistent.weights + persistent.unquantized
    if 2 * persistent.dense_experts > weights:
        bits = 8 * workload.precision.weights
        notes.append(
            f"{persistent.dense_experts / GIB:.2f} of {weights / GIB:.2f} GiB of weights stay in {bits} bits although "
            f"quantization is {workload.base}: this model holds its experts as bare parameters, which bitsandbytes leaves "
            f"alone{_experts_without_adapter(workload)}."
        )
    if workload.base == "int8" and workload.checkpointing != "none":
        notes.append("int8 layers keep their inputs, so gradient checkpointing saves less than elsewhere.")
    return tuple(notes)


def _experts_without_adapter(workload: Workload) -> str:
    return " and which get no adapter" if workload.trains_adapter else ""


def describe_components(
    persistent: Persistent, held: Held, need: DeviceNeed, workload: Workload, workspace_bytes: int
) -> tuple[MemoryComponent, ...]:
    """Divide what is needed at the peak; the parts add up to `need.needed_bytes`."""
    runtime = need.expected_bytes - persistent.total - held.total - workspace_bytes
    on_cuda = workload.device == "cuda"
    return (
        MemoryComponent(
            key="weights",
            label=f"Weights ({_format_words(workload)})",
            bytes=persistent.weights,
            depends_on="The linear layers of the base model; their number and their precision decide.",
        ),
        MemoryComponent(
            key="unquantized",
            label="Experts, embeddings, norms, head" if persistent.dense_experts else "Embeddings, norms, head",
            bytes=persistent.unquantized,
            depends_on="What quantization leaves alone, experts held as bare parameters most of all."
            if persistent.dense_experts
            else "What quantization leaves alone; it grows with the vocabulary and the hidden size.",
        ),
        MemoryComponent(
            key="trained",
            label="Adapter, gradients, optimizer" if workload.trains_adapter else "Gradients, optimizer",
            bytes=persistent.adapter + persistent.optimizer + persistent.buckets + held.gradients,
            depends_on="Everything that is trained, its gradients, and the optimizer state; it grows "
            "with rank and targets, and the optimizer decides.",
        ),
        MemoryComponent(
            key="activations",
            label="Activations",
            bytes=held.activations + held.weight_copies,
            depends_on="What the layers keep for the backward pass, and weights written out while they are in use; it "
            "grows with batch × length and shrinks with gradient checkpointing.",
        ),
        MemoryComponent(
            key="loss",
            label="Logits and loss",
            bytes=held.loss,
            depends_on="One number for every entry of the vocabulary at each position that is scored at once.",
        ),
        MemoryComponent(
            key="runtime",
            label="CUDA and allocator" if on_cuda else "Python and libraries",
            bytes=runtime + workspace_bytes,
            depends_on="The CUDA context, workspaces of matrix products, and what the allocator holds beyond the tensors."
            if on_cuda
            else "The process itself with PyTorch and transformers, and what its allocator holds beyond the tensors.",
        ),
        MemoryComponent(
            key="margin",
            label="Margin of error",
            bytes=need.needed_bytes - need.expected_bytes,
            depends_on="How far a run may go beyond what is expected: nine in ten stay within it.",
        ),
    )


def _format_words(workload: Workload) -> str:
    if workload.base != "dense":
        return workload.base
    return f"{workload.precision.weights * 8} bit"

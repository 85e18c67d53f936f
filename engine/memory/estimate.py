"""How much memory a run needs, in which phase, and whether that fits."""

from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import BaseModel

from loratory.engine.config.run import AdapterConfig, RunConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.hardware.device import Device
from loratory.engine.memory.device_need import PROCESS_ITSELF, DeviceNeed, need_on_device
from loratory.engine.memory.layer_split import DevicePart, divide_layers, shape_of_part, targets_of_part
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.memory.peak import Peak, find_peak, require_sizes
from loratory.engine.memory.persistent import TrainableCount, weight_bytes
from loratory.engine.memory.phases import Phase, simulate_step
from loratory.engine.memory.structure import AdapterTargets, find_targets, read_structure
from loratory.engine.memory.workload import Workload, workload_of_run, workload_of_step
from loratory.engine.models.shape import ModelShape

Verdict = Literal["fits", "tight", "does_not_fit"]
ComponentKey = Literal["weights", "unquantized", "files", "trained", "activations", "loss", "runtime", "margin"]
PeakPhase = Phase | Literal["loading"]

PHASE_WORDS: dict[PeakPhase, str] = {
    "loading": "loading of the weights, before the first step",
    "forward": "forward pass",
    "loss_backward": "backward pass of the loss",
    "layer_backward": "backward pass of a layer",
    "answers": "sampling of answers",
    "optimizer_step": "optimizer step",
}
GIB = 2**30
# `MatMul8bitLt` in bitsandbytes/autograd/_functions.py: each input is quantized and searched for outliers, and the backward pass
# writes the weight out all the same. Below 7B parameters slower than 16 bits: Dettmers et al. 2022, appendix D, arXiv:2208.07339.
SLOW_INT8 = "int8 is the slowest: each layer rounds its inputs and looks for outliers"


class ParameterCount(BaseModel, frozen=True):
    """Counts as PEFT's `print_trainable_parameters` gives them."""

    total: int
    trainable: int
    trainable_percent: float


class MemoryComponent(BaseModel, frozen=True):
    """One part of the stacked bar."""

    key: ComponentKey
    label: str  # plain words
    bytes: int
    depends_on: str  # one sentence: what it is and what moves it


class MemoryEstimate(BaseModel, frozen=True):
    """What one device holds at the peak of a training step.

    The components without the margin add up to `expected_bytes`, with it to `needed_bytes`.
    """

    parameters: ParameterCount
    components: tuple[MemoryComponent, ...]
    allocated_bytes: int  # tensors alive at the peak; on CUDA torch.cuda.max_memory_allocated
    reserved_bytes: int  # what the allocator holds for them; on CUDA max_memory_reserved
    expected_bytes: int  # what the device's own tools show for the process
    needed_bytes: int  # nine runs in ten stay below
    pass_rows: int  # that go through the model at once in the largest pass
    pass_tokens: int  # of them together, padding included
    phase: PeakPhase
    phases_bytes: dict[Phase, int]  # allocated at the peak of each phase
    verdict: Verdict
    device_name: str
    device_kind: Literal["cuda", "mps", "cpu"]
    free_bytes: int
    total_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def phase_words(self) -> str:
        """The phase of the peak, for people."""
        return PHASE_WORDS[self.phase]

    @property
    def components_bytes(self) -> dict[str, int]:
        """Bytes by label, in the order of the bar."""
        return {component.label: component.bytes for component in self.components}


def estimate_memory(
    shape: ModelShape, config: RunConfig, device: Device, rows: RowLengths | None = None
) -> MemoryEstimate:
    """Predict the peak memory of a training run of `config` on `device`, over all its steps.

    Without known `rows`, all of them are as long as `max_length` allows.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs; MemoryUnknownError if it has no layers of known size.
    """
    return Estimator(shape, device, rows).estimate(config)


class DeviceStep(NamedTuple):
    """One device's share of a step whose layers are spread over several."""

    part: DevicePart
    workload: Workload
    peak: Peak
    need: DeviceNeed


class Estimator:
    """Estimates of many configurations for one model, device and data; what they share is worked out once.

    Without known `rows`, all of them are as long as `max_length` allows.
    """

    def __init__(self, shape: ModelShape, device: Device, rows: RowLengths | None = None) -> None:
        self.shape = shape
        self.device = device
        self.rows = rows
        self.structure = read_structure(shape)
        # By the adapter's id, with its owner, and how parts that see images are trained.
        self._known: dict[tuple[int, VisionConfig], tuple[AdapterConfig, AdapterTargets, TrainableCount]] = {}

    def estimate(self, config: RunConfig) -> MemoryEstimate:
        """Return the estimate of a run; raises as `estimate_memory` does.

        Where layers are spread over several devices, the answer is about the one that needs most.
        """
        return self._estimate_workload(config, self.workload(config))

    def workload(self, config: RunConfig) -> Workload:
        """Describe the passes of a run; raises as `estimate_memory` does."""
        return workload_of_run(self.shape, config, self.device, self.rows)

    def estimate_step(self, config: RunConfig) -> MemoryEstimate:
        """Return the estimate of one step of the largest pass, as a measurement takes it; raises as `estimate_memory` does.

        A run may need more than that in a step of shorter rows, which counts in `estimate`.
        """
        return self._estimate_workload(config, workload_of_step(self.shape, config, self.device, self.rows))

    def _estimate_workload(self, config: RunConfig, workload: Workload) -> MemoryEstimate:
        if config.run.spread_over == 1:
            return describe_peak(self.peak(workload), workload, self.device)
        device_steps = self.split_layers(workload, config.run.spread_over)
        needs = [step.need.needed_bytes for step in device_steps]
        number = needs.index(max(needs))
        fullest = device_steps[number]
        estimate = describe_peak(fullest.peak, fullest.workload, self.device)
        note = (
            f"These are figures of the fullest of {len(device_steps)} devices, number {number + 1} in run.devices: it holds "
            f"{_describe_part(fullest.part)}. They need {', '.join(f'{need / GIB:.1f}' for need in needs)} GiB at most."
        )
        parameters = _parameters(self._find_targets(workload)[1])
        return estimate.model_copy(update={"parameters": parameters, "notes": (*estimate.notes, note)})

    def need(self, config: RunConfig) -> DeviceNeed:
        """Only what decides whether it fits; raises as `estimate_memory` does."""
        workload = self.workload(config)
        if config.run.spread_over == 1:
            return self.need_of_step(workload)
        needs = (step.need for step in self.split_layers(workload, config.run.spread_over))
        return max(needs, key=lambda need: need.needed_bytes)

    def need_of_step(self, workload: Workload) -> DeviceNeed:
        """Return what a step needs on one device; raises as `estimate_memory` does."""
        return need_on_device(self.peak(workload).tensors, workload, self.device)

    def split_layers(self, workload: Workload, devices: int) -> tuple[DeviceStep, ...]:
        """Return the part of a step that each of several devices computes; raises as `estimate_memory` does, and:

        Raises:
            ConfigError: If there are fewer layers than devices.
        """
        targets, _ = self._find_targets(workload)
        steps: list[DeviceStep] = []
        for part in self.parts(workload, devices):
            shape, own_targets = shape_of_part(self.shape, part), targets_of_part(targets, part)
            own = replace(workload, holds_embeddings=part.has_embeddings, holds_head=part.has_head)
            counts = count_trainable(shape, workload.adapter, own_targets, workload.vision)
            structure = read_structure(shape)
            step = simulate_step(structure, own, own_targets)
            peak = find_peak(step, structure, own, self.device, counts)
            steps.append(DeviceStep(part, own, peak, need_on_device(peak.tensors, own, self.device)))
        return tuple(steps)

    def parts(self, workload: Workload, devices: int) -> tuple[DevicePart, ...]:
        """Return which layers each of several devices holds; raises as `split_layers` does."""
        whole = self.peak(workload)
        weights = sum(weight_bytes(self.shape.modules, workload))
        trained = 0 if workload.trains_adapter else whole.persistent.optimizer + weights
        activation_bytes, times_weights = whole.kept_bytes // self.structure.num_layers, 1 + trained / max(1, weights)
        return divide_layers(self.shape, workload, devices, kept_bytes=activation_bytes, times_weights=times_weights)

    def peak(self, workload: Workload) -> Peak:
        """Return the peak of a step; raises as `estimate_memory` does."""
        require_sizes(self.shape)
        targets, counts = self._find_targets(workload)
        step = simulate_step(self.structure, workload, targets)
        return find_peak(step, self.structure, workload, self.device, counts)

    def _find_targets(self, workload: Workload) -> tuple[AdapterTargets, TrainableCount]:
        adapter, vision = workload.adapter, workload.vision
        key = (id(adapter), vision)
        if key not in self._known:
            targets = find_targets(self.shape, adapter, vision)
            self._known[key] = (adapter, targets, count_trainable(self.shape, adapter, targets, vision))
        return self._known[key][1:]


def describe_peak(peak: Peak, workload: Workload, device: Device) -> MemoryEstimate:
    """Add to the peak what surrounds the tensors, name the parts, and judge."""
    need = need_on_device(peak.tensors, workload, device)
    return MemoryEstimate(
        parameters=_parameters(peak.counts),
        components=_components(peak, need, workload),
        allocated_bytes=need.allocated_bytes,
        reserved_bytes=need.reserved_bytes,
        expected_bytes=need.expected_bytes,
        needed_bytes=need.needed_bytes,
        pass_rows=workload.batch_size,
        pass_tokens=workload.tokens,
        phase="loading" if need.is_loading else peak.phase,
        phases_bytes=peak.phase_bytes,
        verdict=judge(need.needed_bytes, need.expected_bytes, device),
        device_name=device.name,
        device_kind=device.kind,
        free_bytes=device.free_bytes,
        total_bytes=device.total_bytes,
        notes=(*_notes(workload, peak, device), *_process_notes(peak, need, device)),
    )


def _parameters(counts: TrainableCount) -> ParameterCount:
    return ParameterCount(total=counts.total, trainable=counts.trainable, trainable_percent=counts.percent)


def _describe_part(part: DevicePart) -> str:
    extras = {"embeddings": part.has_embeddings, "output head": part.has_head}
    return " and ".join([f"{len(part.layers)} layers", *(word for word, is_there in extras.items() if is_there)])


def judge(needed_bytes: int, expected_bytes: int, device: Device) -> Verdict:
    """Compare with the free memory: the bound must fit; where only the expectation does, it is tight."""
    if needed_bytes <= device.free_bytes:
        return "fits"
    return "tight" if expected_bytes <= device.free_bytes else "does_not_fit"


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
    if workload.sharded > 1:
        whole = (persistent.weights + persistent.unquantized) * workload.sharded
        notes.append(
            f"These are figures of each of {workload.sharded} devices, which share the weights. Each process first reads the "
            f"whole model into main memory ({whole / GIB:.1f} GiB) and gives its device a layer at a time."
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
            f"alone{' and which get no adapter' if workload.trains_adapter else ''}."
        )
    if workload.base == "int8":
        notes.append(f"{SLOW_INT8}. nf4 is faster in half the memory, 16 bits are faster and exact.")
    if workload.base == "int8" and workload.checkpointing:
        notes.append("int8 layers keep their inputs, so gradient checkpointing saves less than elsewhere.")
    return tuple(notes)


def _pages_of_files(peak: Peak) -> int:
    return peak.persistent.loading - peak.persistent.weights - peak.persistent.unquantized


def _process_notes(peak: Peak, need: DeviceNeed, device: Device) -> tuple[str, ...]:
    """Return a note on what a process on a CPU holds besides tensors."""
    if device.kind != "cpu":
        return ()
    if need.is_loading:
        return (
            f"Most is held while weights are quantized: {_pages_of_files(peak) / GIB:.1f} GiB of it are pages of the weight "
            "files, which the system takes back where memory is short.",
        )
    gaps = need.expected_bytes - need.allocated_bytes - PROCESS_ITSELF
    return (
        f"Python and libraries: {PROCESS_ITSELF / GIB:.1f} GiB with PyTorch and transformers; another {gaps / GIB:.1f} GiB "
        "are held between tensors without being used, which grows with batch × length.",
    )


_DEPENDS_ON: dict[ComponentKey, str] = {
    "weights": "The linear layers of the base model; their number and their precision decide.",
    "unquantized": "What quantization leaves alone; it grows with the vocabulary and the hidden size.",
    "files": "Pages of the weight files while they are quantized; the system takes them back where memory is short.",
    "trained": "Everything that is trained, its gradients, and the optimizer state; it grows with rank and targets, and the "
    "optimizer decides. From a warm start, a preference run keeps the first weights as well.",
    "activations": "What the layers keep for the backward pass, and weights written out while they are in use; it grows with "
    "batch × length and shrinks with gradient checkpointing.",
    "loss": "One number for every entry of the vocabulary at each position that is scored at once.",
    "runtime": "The process itself with PyTorch and transformers, and what its allocator holds beyond the tensors.",
    "margin": "How far a run may go beyond what is expected: nine in ten stay within it.",
}
_EXPERTS_STAY = "What quantization leaves alone, experts held as bare parameters most of all."
_CUDA_TAKES = "The CUDA context, workspaces of matrix products, and what the allocator holds beyond the tensors."


def _components(peak: Peak, need: DeviceNeed, workload: Workload) -> tuple[MemoryComponent, ...]:
    """Divide what is needed at the peak; the parts add up to `need.needed_bytes`."""
    persistent, group_bytes = peak.persistent, peak.group_bytes
    precision = workload.base if workload.base != "dense" else f"{workload.precision.weights * 8} bit"
    adapter = persistent.adapter + persistent.reference
    trained = adapter + persistent.optimizer + persistent.buckets + group_bytes.gradients
    texts, rest, runtime = dict(_DEPENDS_ON), "Embeddings, norms, head", "Python and libraries"
    if persistent.dense_experts > 0:
        rest, texts["unquantized"] = "Experts, embeddings, norms, head", _EXPERTS_STAY
    if workload.device == "cuda":
        runtime, texts["runtime"] = "CUDA and allocator", _CUDA_TAKES
    at_the_peak: tuple[tuple[ComponentKey, str, int], ...] = (
        ("trained", f"{'Adapter, gradients' if workload.trains_adapter else 'Gradients'}, optimizer", trained),
        ("activations", "Activations", group_bytes.activations + group_bytes.weight_copies),
        ("loss", "Logits and loss", group_bytes.loss),
        ("runtime", runtime, need.expected_bytes - persistent.total - group_bytes.total),
    )
    if need.is_loading:
        at_the_peak = (
            ("files", "Weight files", _pages_of_files(peak)),
            ("runtime", runtime, need.expected_bytes - persistent.loading),
        )
    sizes: tuple[tuple[ComponentKey, str, int], ...] = (
        ("weights", f"Weights ({precision})", persistent.weights),
        ("unquantized", rest, persistent.unquantized),
        *at_the_peak,
        ("margin", "Margin of error", need.needed_bytes - need.expected_bytes),
    )
    return tuple(MemoryComponent(key=key, label=label, bytes=size, depends_on=texts[key]) for key, label, size in sizes)

"""How much memory a run needs, in which phase, and whether that fits."""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.memory.trainable import count_trainable
from engine.models.shape import ModelShape

if TYPE_CHECKING:
    from engine.hardware.devices import Device

Phase = Literal["forward", "loss_backward", "layer_backward", "optimizer_step"]
Verdict = Literal["fits", "tight", "does_not_fit"]
ComponentKey = Literal["weights", "unquantized", "trained", "activations", "loss", "runtime", "margin"]

PHASE_WORDS: dict[Phase, str] = {
    "forward": "forward pass",
    "loss_backward": "backward pass of the loss",
    "layer_backward": "backward pass of a layer",
    "optimizer_step": "optimizer step",
}
GIB = 2**30


class ParameterCount(BaseModel):
    """Counts as PEFT's `print_trainable_parameters` gives them."""

    model_config = ConfigDict(frozen=True)

    total: int
    trainable: int
    trainable_percent: float


class MemoryComponent(BaseModel):
    """One part of the stacked bar."""

    model_config = ConfigDict(frozen=True)

    key: ComponentKey
    label: str  # plain words
    bytes: int
    depends_on: str  # one sentence: what it is and what moves it


class MemoryEstimate(BaseModel):
    """What one device holds at the peak of a training step.

    The components without the margin add up to `expected_bytes`, with it to `needed_bytes`.
    """

    model_config = ConfigDict(frozen=True)

    parameters: ParameterCount
    components: tuple[MemoryComponent, ...]
    allocated_bytes: int  # tensors alive at the peak; on CUDA torch.cuda.max_memory_allocated
    reserved_bytes: int  # what the allocator holds for them; on CUDA max_memory_reserved
    expected_bytes: int  # what the device's own tools show for the process
    needed_bytes: int  # nine runs in ten stay below
    phase: Phase
    verdict: Verdict
    device_name: str
    free_bytes: int
    total_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def phase_words(self) -> str:
        return PHASE_WORDS[self.phase]

    @property
    def components_bytes(self) -> dict[str, int]:
        return {component.label: component.bytes for component in self.components}


def judge(expected_bytes: int, needed_bytes: int, free_bytes: int) -> Verdict:
    """Compare with the free memory: the bound must fit; where only the expectation does, it is tight."""
    if needed_bytes <= free_bytes:
        return "fits"
    return "tight" if expected_bytes <= free_bytes else "does_not_fit"


def estimate_memory(shape: ModelShape, config: RunConfig, device: "Device") -> MemoryEstimate:
    """Predict the peak memory of one training step of `config` on `device`.

    Raises:
        ConfigError: If the adapter matches no module of the model.
    """
    counts = count_trainable(shape, config.adapter)
    on_cuda = device.kind == "cuda"
    compute = 2 if device.supports_bfloat16 or on_cuda else 4
    linear = sum(
        m.parameters for m in shape.modules if m.kind in ("linear", "conv1d", "experts") and not m.is_output_head
    )
    rest = shape.num_parameters - linear
    per_parameter = {"none": float(compute), "int8": 1.0, "nf4": 0.51587, "fp4": 0.51587}[config.model.quantization]
    if config.model.quantization in ("nf4", "fp4") and not config.model.double_quant:
        per_parameter = 0.5625
    weights = int(linear * per_parameter)
    unquantized = rest * compute
    trained_bytes = 4 if config.adapter.method != "none" else compute
    trained = counts.added * trained_bytes + counts.trainable * (trained_bytes + 8)
    tokens = config.training.per_device_train_batch_size * config.training.max_length
    hidden, inner = shape.hidden_size, shape.intermediate_size
    layer = tokens * compute * (10 * hidden + 5 * inner)
    boundary = tokens * compute * hidden
    checkpointed = config.training.gradient_checkpointing
    layers = shape.num_hidden_layers
    activations = layers * boundary + 2 * layer if checkpointed else layers * layer
    loss = tokens * shape.vocab_size * (compute + 8)
    allocated = weights + unquantized + trained + activations + loss
    runtime = int(0.05 * allocated) + (600 * 2**20 if on_cuda else 700 * 2**20)
    expected = allocated + runtime
    needed = int(expected * 1.12)
    quantized = config.model.quantization
    components = (
        MemoryComponent(
            key="weights",
            label=f"Weights ({quantized})" if quantized != "none" else f"Weights ({compute * 8} bit)",
            bytes=weights,
            depends_on="The linear layers of the base model; their precision decides.",
        ),
        MemoryComponent(
            key="unquantized",
            label="Embeddings, norms, head",
            bytes=unquantized,
            depends_on="What quantization leaves alone; grows with the vocabulary.",
        ),
        MemoryComponent(
            key="trained",
            label="Adapter, gradients, optimizer",
            bytes=trained,
            depends_on="Everything that is trained; grows with rank and targets, and with the optimizer's state.",
        ),
        MemoryComponent(
            key="activations",
            label="Activations",
            bytes=activations,
            depends_on="What the layers keep for the backward pass; grows with batch × length, shrinks with checkpointing.",
        ),
        MemoryComponent(
            key="loss",
            label="Logits and loss",
            bytes=loss,
            depends_on="One number per trained position and vocabulary entry.",
        ),
        MemoryComponent(
            key="runtime",
            label="CUDA and allocator" if on_cuda else "Python and libraries",
            bytes=runtime,
            depends_on="The process itself, and what the allocator holds beyond the tensors.",
        ),
        MemoryComponent(
            key="margin",
            label="Margin of error",
            bytes=needed - expected,
            depends_on="Nine runs in ten stay within it.",
        ),
    )
    return MemoryEstimate(
        parameters=ParameterCount(total=counts.total, trainable=counts.trainable, trainable_percent=counts.percent),
        components=components,
        allocated_bytes=allocated,
        reserved_bytes=int(allocated * 1.05),
        expected_bytes=expected,
        needed_bytes=needed,
        phase="loss_backward",
        verdict=judge(expected, needed, device.free_bytes),
        device_name=device.name,
        free_bytes=device.free_bytes,
        total_bytes=device.total_bytes,
    )

"""What one training step does on one device, in the terms that memory depends on."""

from dataclasses import dataclass
from typing import Literal

from engine.config.run import AdapterConfig
from engine.models.shape import ModuleShape

DeviceKind = Literal["cuda", "cpu"]
BaseFormat = Literal["dense", "nf4", "fp4", "int8", "gptq"]
AttentionKernel = Literal[
    "flash",
    "efficient",
    "math",
    "eager",
    "cpu_flash",
    "tiled",  # Loratory's own on the CPU: rows one after the other, in tiles of queries
]
LoraBranch = Literal["peft", "quick"]  # PEFT's general layer, or Loratory's own
Checkpointing = Literal["none", "reentrant", "non_reentrant"]
OptimizerKind = Literal["adamw", "adamw_8bit", "sgd", "sgd_momentum", "adafactor"]
LossPath = Literal[
    "full_logits",  # transformers' ForCausalLMLoss on all positions
    "fused",  # a kernel that overwrites the logits with their gradient (FOAK, Unsloth)
    "linear_fused",  # a kernel that never holds all logits (Liger, cut cross-entropy)
    "trained_positions",  # Loratory's trainer: only what is trained goes through the head, chunk by chunk
]


@dataclass(frozen=True)
class Precision:
    """Bytes per element of what takes part; autocast is None where the step does not run under it."""

    weights: int = 2  # of the frozen linear layers, where they are not quantized
    embeddings: int = 2  # of the embedding, hence of the residual stream
    norms: int = 2
    head: int = 2
    compute: int = 2  # in which quantized weights are multiplied
    adapter: int = 4
    gradients: int | None = None  # of trained weights; as they are themselves where None
    autocast: int | None = None
    is_float16: bool = False  # the 16-bit floats that take part are float16, not bfloat16


@dataclass(frozen=True)
class Optimizer:
    """How trained weights are updated."""

    kind: OptimizerKind = "adamw"
    state_width: int = 4
    fused: bool = False  # no temporaries
    foreach: bool = True  # temporaries for all parameters at once
    decays: bool = False  # weights are pulled towards zero, for which SGD copies gradients
    paged: bool = False  # state may leave the device
    master_weights: bool = False  # a 32-bit copy of 16-bit weights


@dataclass(frozen=True)
class Loss:
    """How logits become a loss.

    Attributes:
        upcasts: Logits are cast to 32 bits before the loss.
        shifts: The positions are shifted by copying the logits, as transformers did before 4.49.
        holds_narrow_logits: The logits before the cast are still held by a variable while the loss is computed.
        converts_output: Accelerate answers a model under autocast with a 32-bit copy of its output.
        holds_logits: The caller keeps the model's output through the backward pass.
        positions_share: Of all positions, those that are trained.
        chunk_bytes: Logits of one chunk at 32 bits; 0 where all go at once.
        chunks_of: Positions that chunks are sized for, where not for the step's own: those of a shorter step.
        covers_shorter: The step represents a run, in which other steps have fewer positions and may have larger chunks.
    """

    path: LossPath = "full_logits"
    upcasts: bool = True
    shifts: bool = False
    holds_narrow_logits: bool = True
    converts_output: bool = False
    holds_logits: bool = False
    positions_share: float = 1.0
    chunk_bytes: int = 0
    chunks_of: int | None = None
    covers_shorter: bool = False


@dataclass(frozen=True)
class Workload:
    """One training step on one device.

    Attributes:
        batch_size: Rows at once.
        length: Tokens of each row, padding included.
        joined: Rows follow one another in one sequence, without padding.
        fills_up_to: A last row makes the tokens of joined rows a multiple of this.
        masked: Attention gets a materialized mask, as padded rows need.
        expands_key_values: Grouped-query keys and values are copied to every head before attention.
        accumulates: Gradients of earlier passes wait while a pass is under way.
        fused_norms: Kernels that keep one tensor per norm, and rotate in place.
        keeps_cache: Keys and values of all layers are kept in a cache although nothing reads it.
        pass_sizes: Sizes of passes that a run may have, where its products are compiled for each; 1 elsewhere.
        data_parallel: Devices that each hold the whole model and average their gradients (DDP).
        sharded: Devices that share weights, gradients and optimizer state among them (FSDP).
        holds_embeddings: The device looks tokens up; else hidden states arrive from another one, and gradients go back.
        holds_head: The device computes logits and loss; else hidden states continue to another one.
    """

    adapter: AdapterConfig
    batch_size: int
    length: int
    device: DeviceKind = "cuda"
    base: BaseFormat = "dense"
    double_quant: bool = True
    precision: Precision = Precision()
    attention: AttentionKernel = "flash"
    lora_branch: LoraBranch = "peft"
    joined: bool = False
    fills_up_to: int = 1
    expands_key_values: bool = False
    masked: bool = False
    checkpointing: Checkpointing = "none"
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    accumulates: bool = False
    fused_norms: bool = False
    keeps_cache: bool = False
    gptq_group_size: int = 128
    pass_sizes: int = 1
    data_parallel: int = 1
    sharded: int = 1
    holds_embeddings: bool = True
    holds_head: bool = True

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of each row that goes through the model."""
        rows = (self.length,) * self.batch_size
        missing = -self.batch_size * self.length % self.fills_up_to
        return (*rows, missing) if missing else rows

    @property
    def tokens(self) -> int:
        """Tokens of one batch, padding included."""
        return self.batch_size * self.length + -self.batch_size * self.length % self.fills_up_to

    @property
    def key_length(self) -> int:
        """Positions that each row attends to: its own, and before them learned keys and values."""
        method = self.adapter.traits
        in_cache = method.virtual_tokens == "keys_and_values"
        return self.length + (method.count_virtual_tokens(self.adapter) if in_cache else 0)

    def quantizes(self, module: ModuleShape) -> bool:
        """Return whether a module's weight is held in the base's quantized format."""
        return self.base != "dense" and module.is_quantizable and not module.is_output_head

    @property
    def virtual_inputs(self) -> int:
        """Learned embeddings in each row, which `length` counts."""
        return self.adapter.traits.count_virtual_inputs(self.adapter)

    @property
    def trains_adapter(self) -> bool:
        return not self.adapter.traits.trains_all

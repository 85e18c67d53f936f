"""What one training step does on one device, in the terms that memory depends on, and how a run comes to it."""

import os
import shutil
from dataclasses import dataclass, replace
from typing import Literal

from loratory.engine.config.constraints import count_processes
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.optimizations import is_wanted
from loratory.engine.config.rules import (
    JOINED_MULTIPLE,
    LOSS_CHUNK_BYTES,
    LOSS_CHUNK_BYTES_CPU,
    DtypeName,
    choose_compute_dtype,
    optimizer_name,
)
from loratory.engine.config.run import AdapterConfig, RunConfig
from loratory.engine.config.vision import MODELS_OWN, VisionConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.largest_pass import LargestPass, largest_pass
from loratory.engine.data.step_plan import PlanSettings, join_rows
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import version_parts
from loratory.engine.hardware.libraries import library_version
from loratory.engine.memory.tower import read_tower
from loratory.engine.models.batching import (
    FLASH_ATTENTION,
    VARLEN_ATTENTION,
    AttentionFacts,
    choose_batching,
    expected_attention,
    needs_mask,
    shares_prompts,
    takes_varlen_attention,
)
from loratory.engine.models.shape import ModelShape, ModuleShape

_LARGEST_HEAD = 256  # that fused kernels take

DeviceKind = Literal["cuda", "cpu"]
BaseFormat = Literal["dense", "nf4", "fp4", "int8", "gptq"]
# "tiled" is Loratory's own on the CPU: rows one after the other, in tiles of queries.
AttentionKernel = Literal["flash", "efficient", "math", "eager", "cpu_flash", "tiled"]
# Norms as transformers writes them; PyTorch's kernel, which keeps one tensor for each; Liger's, which also rotate in place.
LayerKernels = Literal["own", "torch", "liger"]
OptimizerKind = Literal["adamw", "adamw_8bit", "sgd", "adafactor"]


@dataclass(frozen=True)
class StepPrecision:
    """Bytes per element of what takes part; autocast is None where the step does not run under it."""

    weights: int = 2  # of the frozen linear layers, where they are not quantized
    embeddings: int = 2  # of the embedding, hence of the residual stream
    norms: int = 2
    head: int = 2
    compute: int = 2  # in which quantized weights are multiplied
    adapter: int = 4
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


_OPTIMIZERS = {
    "adamw_torch": Optimizer("adamw", foreach=False),
    "adamw_torch_fused": Optimizer("adamw", fused=True),
    "adamw_8bit": Optimizer("adamw_8bit", state_width=1),
    "paged_adamw_8bit": Optimizer("adamw_8bit", state_width=1, paged=True),
    "paged_adamw_32bit": Optimizer("adamw", fused=True, paged=True),
    "adafactor": Optimizer("adafactor"),
}


@dataclass(frozen=True)
class Loss:
    """In which chunks the trained positions go through the head."""

    chunk_bytes: int = 0  # logits of one chunk at 32 bits; 0 where all go at once
    # Positions that chunks are sized for, where not for the step's own: those of a shorter step.
    chunks_of: int | None = None
    # The step represents a run, in which other steps have fewer positions and may have larger chunks.
    covers_shorter: bool = False
    fused: bool = False  # a kernel makes losses and gradients in place of the logits, which chunks are then sized for


@dataclass(frozen=True)
class Workload:
    """One training step on one device."""

    adapter: AdapterConfig
    batch_size: int  # sequences at once
    length: int  # tokens of each row, padding included
    device: DeviceKind = "cuda"
    base: BaseFormat = "dense"
    double_quant: bool = True
    precision: StepPrecision = StepPrecision()
    attention: AttentionKernel = "flash"
    joined: bool = False  # rows follow one another in one sequence, without padding
    fills_up_to: int = 1  # a last row makes the tokens of joined rows a multiple of this
    expands_key_values: bool = False  # grouped-query keys and values are copied to every head before attention
    masked: bool = False  # attention gets a materialized mask, as padded rows need
    checkpointing: bool = False
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    accumulates: bool = False  # gradients of earlier passes wait while a pass is under way
    layer_kernels: LayerKernels = "own"
    gptq_group_size: int = 128
    # Of joined rows that differ, tokens of each, two sequences that share their prompt in one; `length` is then that of the
    # longest sequence.
    joined_lengths: tuple[int, ...] = ()
    trained_tokens: int | None = None  # of the pass; None where every token is trained
    pass_sizes: int = 1  # sizes of passes that a run may have, where its products are compiled for each; 1 elsewhere
    has_reference: bool = False  # the step compares with the model that training started from
    answers: int = 0  # that are sampled before the step, each as long as its longest row
    vllm_bytes: int = 0  # that vLLM reserves while it writes them
    data_parallel: int = 1  # devices that each hold the whole model and average their gradients (DDP)
    sharded: int = 1  # devices that share weights, gradients and optimizer state among them (FSDP)
    # The device looks tokens up; else hidden states arrive from another one, and gradients go back.
    holds_embeddings: bool = True
    holds_head: bool = True  # the device computes logits and loss; else hidden states continue to another one
    vision: VisionConfig = MODELS_OWN  # how the parts that see images are trained, where the model has some
    pixels: int = 0  # of the images of a pass, as the model sees them
    held_passes: int = 1  # whose images are there at once

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of each row that goes through the model."""
        rows = self.joined_lengths or (self.length,) * self.batch_size
        missing = -sum(rows) % self.fills_up_to
        return (*rows, missing) if missing else rows

    @property
    def tokens(self) -> int:
        """Tokens of one batch, padding included."""
        tokens = sum(self.joined_lengths) or self.batch_size * self.length
        return tokens + -tokens % self.fills_up_to

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
    def has_quick_layers(self) -> bool:
        """Whether adapted layers are Loratory's own, which do their products and casts by themselves."""
        return self.adapter.traits.has_quick_layers(self.adapter)

    @property
    def trains_adapter(self) -> bool:
        return not self.adapter.traits.trains_all


def workload_of_run(shape: ModelShape, config: RunConfig, device: Device, rows: RowLengths | None = None) -> Workload:
    """Describe the passes of a run: the largest one, and whatever may take more in a shorter one.

    Without known `rows`, all of them are as long as `max_length` allows.
    """
    config = _with_answers(config)
    ceiling = _longest_step(shape, config, device, rows)
    step, sizes = ceiling, _pass_sizes(config, device, ceiling)
    largest = _largest_pass(ceiling, config, device, rows)
    if largest is not None:
        step, sizes = _holding(ceiling, largest, config), min(sizes, largest.sizes)
    answers = max(step.answers, _held_out_prompts(config, rows)) if step.answers else 0
    return replace(step, loss=replace(step.loss, covers_shorter=True), pass_sizes=sizes, answers=answers)


def _held_out_prompts(config: RunConfig, rows: RowLengths | None) -> int:
    """Return how many rows are held out, which are answered side by side, once each."""
    share = config.dataset.eval_fraction
    return round(rows.count * share / (1 - share)) if rows is not None else 0


def _with_answers(config: RunConfig) -> RunConfig:
    """Return a configuration of sequences as long as prompts with the longest answers, where these are sampled."""
    training = config.training.model_copy(update={"max_length": objective_of(config).longest_sequence(config)})
    return config.model_copy(update={"training": training})


def _answers_of_step(config: RunConfig) -> int:
    training = config.training
    prompts = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return prompts * training.num_generations if objective_of(config).samples_answers else 0


def _pass_of_answers(ceiling: Workload, config: RunConfig, device: Device, rows: RowLengths) -> LargestPass:
    """Return the largest pass of answers as long as they may be to the longest known prompt, which is shared where it can be."""
    training = config.training
    size, most = training.per_device_train_batch_size, training.max_completion_length
    longest = min(training.max_length, (rows.longest_prompt or rows.longest) + most)
    lengths = (longest,) * size
    if ceiling.joined:
        rest = most if _shares_prompts(ceiling, config, device) else longest
        answers = [longest, *[rest] * (training.num_generations - 1)] * (ceiling.answers // training.num_generations)
        passes = join_rows(range(len(answers)), answers, size * training.max_length)
        lengths = max((tuple(answers[row] for row in part.rows) for part in passes), key=sum)
    return LargestPass(lengths, len(lengths) * most, len(lengths) * longest, len(lengths), longest)


def _shares_prompts(ceiling: Workload, config: RunConfig, device: Device) -> bool:
    return ceiling.attention == "tiled" and shares_prompts("joined", config, device.kind)


def _largest_pass(ceiling: Workload, config: RunConfig, device: Device, rows: RowLengths | None) -> LargestPass | None:
    """Return the largest pass that the trainer makes of these rows, where `ceiling` is one of the longest rows allowed.

    None where the rows are not known, and where they cannot be packed as they should be.
    """
    if rows is None or (config.training.packing and not ceiling.joined):
        return None
    if objective_of(config).samples_answers:
        return _pass_of_answers(ceiling, config, device, rows)
    settings = PlanSettings(
        training=config.training,
        batching="joined" if ceiling.joined else "padded",
        world_size=ceiling.data_parallel * ceiling.sharded,
        sequences_per_row=objective_of(config).sequences_per_example,
        shares_prompts=_shares_prompts(ceiling, config, device),
    )
    return largest_pass(rows, settings, ceiling.fills_up_to)


def _holding(ceiling: Workload, largest: LargestPass, config: RunConfig) -> Workload:
    return replace(
        ceiling,
        batch_size=largest.sequences,
        length=largest.longest + ceiling.virtual_inputs,
        joined_lengths=largest.lengths if ceiling.joined else (),
        trained_tokens=None if objective_of(config).trains_prompts else largest.trained_tokens,
        pixels=largest.pixels,
    )


def _pass_sizes(config: RunConfig, device: Device, step: Workload) -> int:
    """Return for how many sizes of a pass products are compiled: 16-bit ones on a CPU, by oneDNN."""
    # Source: `use_mkldnn_matmul`, aten/src/ATen/native/mkldnn/Matmul.cpp; 32-bit products go to MKL, which keeps none.
    if device.kind != "cpu" or step.precision.compute != 2:
        return 1
    largest = step.tokens // step.fills_up_to if step.joined else step.length
    passes = config.training.max_steps * config.training.gradient_accumulation_steps
    return min(largest, passes) if passes > 0 else largest


def workload_of_step(shape: ModelShape, config: RunConfig, device: Device, rows: RowLengths | None = None) -> Workload:
    """Describe the largest pass alone, as the worker will run it on this device; `rows` as in `workload_of_run`."""
    config = _with_answers(config)
    ceiling = _longest_step(shape, config, device, rows)
    largest = _largest_pass(ceiling, config, device, rows)
    return ceiling if largest is None else _holding(ceiling, largest, config)


def _longest_step(shape: ModelShape, config: RunConfig, device: Device, rows: RowLengths | None) -> Workload:
    """Describe a pass of the longest rows allowed; of images alone where the model takes some and rows are not known."""
    training, adapter = config.training, config.adapter
    has_images = shape.takes_images and (rows is None or bool(rows.pixels))
    tower = read_tower(shape) if has_images else None
    processes, sharded = count_processes(config), config.run.fsdp != "none"
    precision = _precision(
        config,
        device,
        trains_whole_parts=shape.takes_images and "full" in (config.vision.tower, config.vision.projector),
    )
    backend = expected_attention(shape.attention_support, config, device, has_flash_package=has_flash_attention())
    facts = AttentionFacts.of_shape(shape)
    through = VARLEN_ATTENTION if takes_varlen_attention(facts, backend, config, device) else backend
    joined = not has_images and choose_batching(facts, through, config, device.kind) == "joined"
    # Without a padding mask, layers still get one for a window that rows are longer than.
    has_window = bool(shape.sliding_window) and (shape.sliding_window or 0) < training.max_length
    masked = (
        not joined
        and (training.per_device_train_batch_size > 1 or adapter.traits.virtual_tokens == "keys_and_values")
        and (has_images or has_window or needs_mask(facts, backend, config))
    )
    batch = training.per_device_train_batch_size * objective_of(config).sequences_per_example
    chunk_bytes = LOSS_CHUNK_BYTES_CPU if device.kind == "cpu" else LOSS_CHUNK_BYTES
    attention = _kernel(shape, backend, device, precision, joined=joined, masked=masked)
    return Workload(
        adapter=adapter,
        batch_size=batch,
        length=training.max_length + adapter.traits.count_virtual_inputs(adapter),
        # Apple's GPU shares the processor's memory, without a context or workspaces of its own.
        device="cuda" if device.kind == "cuda" else "cpu",
        base="dense" if config.model.quantization == "none" else config.model.quantization,
        double_quant=config.model.double_quant,
        precision=precision,
        attention=attention,
        joined=joined,
        fills_up_to=JOINED_MULTIPLE if joined and attention != "flash" else 1,
        masked=masked and attention not in ("eager", "math"),
        # With a mask, transformers copies keys and values to every head.
        expands_key_values=attention == "efficient" or (attention == "cpu_flash" and masked),
        checkpointing=training.gradient_checkpointing,
        loss=Loss(chunk_bytes, fused=device.kind == "cuda" and is_wanted("fused_loss") and compiles_triton()),
        optimizer=_optimizer(config, device),
        layer_kernels=_layer_kernels(config, device),
        accumulates=training.gradient_accumulation_steps > 1,
        has_reference=objective_of(config).compares(config),
        answers=_answers_of_step(config),
        vllm_bytes=int(training.vllm_gpu_memory_utilization * device.total_bytes) if training.uses_vllm else 0,
        data_parallel=1 if sharded else processes,
        sharded=processes if sharded else 1,
        vision=config.vision if shape.takes_images else MODELS_OWN,
        pixels=batch * training.max_length * tower.patches_per_token * tower.patch_pixels if tower is not None else 0,
        # A processor has those of the whole step, which are made before it.
        held_passes=1 if device.kind == "cuda" else training.gradient_accumulation_steps,
    )


def compute_width_bytes(config: RunConfig, device: Device) -> int:
    """Return the bytes per element of matrix products, and of frozen weights that are not quantized."""
    return 4 if _compute_dtype(config, device) == "float32" else 2


def _compute_dtype(config: RunConfig, device: Device) -> DtypeName:
    return choose_compute_dtype(config.model.compute_dtype, device.kind, has_fast_bfloat16=device.has_fast_bfloat16)


def _precision(config: RunConfig, device: Device, *, trains_whole_parts: bool) -> StepPrecision:
    """Source: engine/training/placement.py and assembly.py; trained weights are always held at 32 bits."""
    width, is_float16 = compute_width_bytes(config, device), _compute_dtype(config, device) == "float16"
    frozen = 4 if config.adapter.traits.trains_all else width
    casts_itself = config.adapter.traits.trains_in_compute_dtype(config.adapter) and not trains_whole_parts
    autocasts = width == 2 and (is_float16 or not casts_itself)
    autocast = 2 if autocasts else None
    return StepPrecision(frozen, frozen, frozen, frozen, compute=width, autocast=autocast, is_float16=is_float16)


def has_flash_attention() -> bool:
    """Whether FlashAttention 2 is installed here, where the worker will run; version 4 has its module's name as well.

    Source: `is_flash_attn_2_available`, transformers/utils/import_utils.py.
    """
    return version_parts(library_version("flash-attn") or "", 3) >= (2, 3, 3)


def _layer_kernels(config: RunConfig, device: Device) -> LayerKernels:
    """Source: `use_layer_kernels`, engine/training/kernels.py. What Liger saves in gated layers is not counted."""
    if device.kind != "cuda":
        return "own"
    on_one = config.run.spread_over == 1 and config.run.fsdp == "none"
    has_liger = library_version("liger-kernel") is not None and compiles_triton()
    if has_liger and on_one and config.training.use_liger_kernel and is_wanted("liger_kernels"):
        return "liger"
    return "torch" if is_wanted("fused_norms") else "own"


def compiles_triton() -> bool:
    """Return whether Triton's kernels can be compiled here, where the worker will run: it calls a C compiler.

    Source: `_build`, triton/runtime/build.py.
    """
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return library_version("triton") is not None and any(shutil.which(name) for name in compilers if name)


def _kernel(
    shape: ModelShape, attention: str, device: Device, precision: StepPrecision, *, joined: bool, masked: bool
) -> AttentionKernel:
    """Return the kernel that PyTorch takes for what transformers calls `attention`.

    Flash attention needs 16-bit floats and a GPU from Ampere on, and takes no mask. The memory-efficient kernel needs equal
    head counts, for which keys and values are copied, and Ampere for bfloat16. Apple's GPU is left with the slow path, since
    its own kernel has no backward pass.

    Source: `copy_shared_heads`, engine/training/ops/attention.py; `sdp_utils.cpp` of PyTorch.
    """
    if attention == "eager":
        return "eager"
    if device.kind == "cpu":
        return "tiled" if joined else "cpu_flash"
    if device.kind == "mps":
        return "math"
    if attention == FLASH_ATTENTION:
        return "flash"
    if shape.head_dim > _LARGEST_HEAD:
        return "math"
    half = precision.compute == 2
    if half and not device.has_fast_bfloat16 and not precision.is_float16:
        return "math"
    return "flash" if half and device.has_fast_bfloat16 and not masked else "efficient"


def _optimizer(config: RunConfig, device: Device) -> Optimizer:
    """Source: transformers/trainer_optimizer.py."""
    sgd = Optimizer("sgd", foreach=device.kind == "cuda", decays=config.training.weight_decay > 0)
    return _OPTIMIZERS.get(optimizer_name(config.training.optim, device.kind), sgd)

"""What a RunConfig asks of a device: how Loratory's own trainer carries it out."""

from dataclasses import replace

from engine.config.objectives import objective_of
from engine.config.rules import (
    JOINED_MULTIPLE,
    LOSS_CHUNK_BYTES,
    LOSS_CHUNK_BYTES_CPU,
    DtypeName,
    choose_compute_dtype,
    optimizer_name,
)
from engine.config.run import RunConfig
from engine.hardware.device import Device
from engine.hardware.devices import version_parts
from engine.hardware.libraries import library_version
from engine.memory.workload import (
    AttentionKernel,
    Checkpointing,
    Loss,
    Optimizer,
    Precision,
    Workload,
)
from engine.models.batching import FLASH_ATTENTION, AttentionFacts, choose_batching, expected_attention
from engine.models.shape import ModelShape

# Fused kernels take heads up to this size.
_LARGEST_HEAD = 256


def workload_of_run(shape: ModelShape, config: RunConfig, device: Device) -> Workload:
    """Describe the passes of a run: the one of the longest rows, and whatever may take more in a shorter one."""
    step = workload_of_step(shape, config, device)
    return replace(step, loss=replace(step.loss, covers_shorter=True), pass_sizes=_pass_sizes(config, device, step))


def _pass_sizes(config: RunConfig, device: Device, step: Workload) -> int:
    """Return for how many sizes of a pass products are compiled: 16-bit ones on a CPU, by oneDNN.

    Source: `use_mkldnn_matmul`, aten/src/ATen/native/mkldnn/Matmul.cpp; 32-bit products go to MKL, which keeps none.
    """
    if device.kind != "cpu" or step.precision.compute != 2:
        return 1
    largest = step.tokens // step.fills_up_to if step.joined else step.length
    passes = config.training.max_steps * config.training.gradient_accumulation_steps
    return min(largest, passes) if passes > 0 else largest


def workload_of_step(shape: ModelShape, config: RunConfig, device: Device) -> Workload:
    """Describe one pass of the longest rows alone, as the worker will run it on this device."""
    training, adapter = config.training, config.adapter
    precision = _precision(config, device)
    named = expected_attention(shape.attention_support, config, device, has_flash_package=has_flash_attention())
    joined = choose_batching(AttentionFacts.of_shape(shape), named, config, device.kind) == "joined"
    masked = not joined and (
        training.per_device_train_batch_size > 1 or adapter.traits.virtual_tokens == "keys_and_values"
    )
    attention = _kernel(shape, named, device, precision, joined=joined, masked=masked)
    checkpointing: Checkpointing = "non_reentrant" if training.gradient_checkpointing else "none"
    return Workload(
        adapter=adapter,
        batch_size=objective_of(config).sequences_at_once(training.per_device_train_batch_size),
        length=training.max_length + adapter.traits.count_virtual_inputs(adapter),
        # Apple's GPU shares the processor's memory, without a context or workspaces of its own.
        device="cuda" if device.kind == "cuda" else "cpu",
        base="dense" if config.model.quantization == "none" else config.model.quantization,
        double_quant=config.model.double_quant,
        precision=precision,
        attention=attention,
        lora_branch="quick",
        joined=joined,
        fills_up_to=JOINED_MULTIPLE if joined and attention != "flash" else 1,
        masked=masked and attention not in ("eager", "math"),
        # With a mask, transformers copies keys and values to every head.
        expands_key_values=attention == "efficient" or (attention == "cpu_flash" and masked),
        checkpointing=checkpointing,
        loss=Loss(
            path="trained_positions", chunk_bytes=LOSS_CHUNK_BYTES_CPU if device.kind == "cpu" else LOSS_CHUNK_BYTES
        ),
        optimizer=_optimizer(config, device),
        accumulates=training.gradient_accumulation_steps > 1,
        data_parallel=_companions(config),
    )


def _companions(config: RunConfig) -> int:
    """Devices that hold the whole model each: those that are named, where Accelerate starts a process for each."""
    if config.run.launcher == "local" or isinstance(config.run.devices, str):
        return 1
    return len(config.run.devices)


def compute_width_bytes(config: RunConfig, device: Device) -> int:
    """Return the bytes per element of matrix products, and of frozen weights that are not quantized."""
    return 4 if _compute_dtype(config, device) == "float32" else 2


def _compute_dtype(config: RunConfig, device: Device) -> DtypeName:
    return choose_compute_dtype(config.model.compute_dtype, device.kind, has_fast_bfloat16=device.has_fast_bfloat16)


def _precision(config: RunConfig, device: Device) -> Precision:
    """Source: engine/training/precision.py and assembly.py; trained weights are always held at 32 bits."""
    width, is_float16 = compute_width_bytes(config, device), _compute_dtype(config, device) == "float16"
    trains_everything = config.adapter.traits.trains_all
    frozen = 4 if trains_everything else width
    autocasts = width == 2 and (is_float16 or not config.adapter.traits.trains_in_compute_dtype(config.adapter))
    return Precision(
        weights=frozen,
        embeddings=frozen,
        norms=frozen,
        head=frozen,
        compute=width,
        adapter=4,
        autocast=2 if autocasts else None,
        is_float16=is_float16,
    )


def has_flash_attention() -> bool:
    """Whether FlashAttention 2 is installed here, where the worker will run; version 4 has its module's name as well.

    Source: `is_flash_attn_2_available`, transformers/utils/import_utils.py.
    """
    return version_parts(library_version("flash-attn") or "", 3) >= (2, 3, 3)


def _kernel(
    shape: ModelShape, attention: str, device: Device, precision: Precision, *, joined: bool, masked: bool
) -> AttentionKernel:
    """The kernel that PyTorch takes for what transformers calls `attention`.

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
    name = optimizer_name(config.training.optim, device.kind)
    if name == "adamw_torch":
        return Optimizer("adamw", foreach=False)
    if name == "adamw_torch_fused":
        return Optimizer("adamw", fused=True)
    if name == "adamw_8bit":
        return Optimizer("adamw_8bit", state_width=1)
    if name == "paged_adamw_8bit":
        return Optimizer("adamw_8bit", state_width=1, paged=True)
    if name == "paged_adamw_32bit":
        return Optimizer("adamw", fused=True, paged=True)
    if name == "adafactor":
        return Optimizer("adafactor")
    return Optimizer("sgd", foreach=device.kind == "cuda", decays=config.training.weight_decay > 0)

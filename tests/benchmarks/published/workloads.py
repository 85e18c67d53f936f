"""From the settings of a published measurement to the step that was measured."""

from dataclasses import replace
from typing import Literal

from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import EngineError
from loratory.engine.hardware.device import Device
from loratory.engine.memory.workload import AttentionKernel, BaseFormat, Optimizer, StepPrecision
from loratory.engine.models.shape import ModelShape
from tests.benchmarks.published.gpus import is_before_ampere, memory_of_gpu
from tests.benchmarks.published.measurements import MeasuredPoint
from tests.benchmarks.published.other_trainers import PlainLoss, PlainWorkload
from tests.benchmarks.published.shapes import PublishedSizes, dropouts_of, known_sizes, published_shape

# By the words of the files: the format of the base, and whether its scales are quantized too.
_FORMATS: dict[str, tuple[BaseFormat, bool]] = {
    "none": ("dense", False),
    "nf4": ("nf4", False),
    "nf4+dq": ("nf4", True),
    "gptq-int4": ("gptq", False),
}
_ATTENTION: dict[str, AttentionKernel] = {
    "eager": "eager",
    "flash_attention_2": "flash",
    "sdpa": "flash",  # in 16 bits on a GPU since Ampere
    "sdpa (mem-efficient backend pinned, K/V expanded)": "efficient",
}
# Families whose loss did not cast the logits to 32 bits before they got transformers' common one (4.50).
_WITHOUT_UPCAST = frozenset({"gpt_bigcode"})
# Families that kept a cache while training with checkpointing, before layers learned to refuse one (5.0).
_WITH_CACHE = frozenset({"gpt_bigcode"})
_LARGE_CHECKPOINT = 30_000_000_000  # parameters


class NotModelledError(EngineError):
    """A measurement whose settings are not understood well enough for a figure."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "Nothing is predicted for it.")


def shape_of_point(point: MeasuredPoint) -> ModelShape:
    """Return the measured model's inventory.

    Raises:
        NotModelledError: If its sizes are neither given nor known.
    """
    architecture, known = point.arch, known_sizes(point.model_id)
    if architecture is None:
        if known is None:
            raise NotModelledError(f"{point.model_id} is not known, and no sizes are given.")
        return published_shape(point.model_id, known)
    model_type = known.model_type if known else "llama"
    sizes = PublishedSizes(
        model_type=model_type,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_key_value_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
        tie_word_embeddings=architecture.tie_word_embeddings,
        max_position_embeddings=known.max_position_embeddings if known else None,
        **dropouts_of(model_type),
    )
    return published_shape(architecture.name or point.model_id, sizes)


def device_of_point(point: MeasuredPoint) -> Device:
    """Return the measured GPU, with all of its memory free."""
    total = memory_of_gpu(point.gpu)
    assert total is not None, point.gpu
    return Device("cuda", 0, point.gpu, total, total, has_fast_bfloat16=not is_before_ampere(point.gpu))


def workload_of_point(point: MeasuredPoint, shape: ModelShape) -> PlainWorkload:
    """Describe the step that was measured, by its settings alone.

    Raises:
        NotModelledError: If a setting is not understood.
    """
    if point.quantization not in _FORMATS:
        raise NotModelledError(f"the quantization {point.quantization} is not one that is modelled.")
    base, double_quant = _FORMATS[point.quantization]
    adapter = _adapter(point, shape)
    attention = _ATTENTION[point.attention]
    length = point.seq_len + adapter.traits.count_virtual_inputs(adapter)
    if not shape.rotary and shape.max_position_embeddings is not None:
        # Learned positions end there, so no longer row can have been trained on.
        length = min(length, shape.max_position_embeddings)
    checkpointing = _checkpointing(point)
    has_kernels = any(part in point.framework for part in ("foak", "liger"))
    keeps_cache = shape.model_type in _WITH_CACHE and checkpointing != "none" and _transformers(point) < (5,)
    trainable = _width(point.trainable_dtype)
    return PlainWorkload(
        adapter=adapter,
        batch_size=point.batch_size,
        length=length,
        base=base,
        double_quant=double_quant,
        precision=_precision(point, base),
        attention=attention,
        expands_key_values=attention == "efficient",
        checkpointing=checkpointing != "none",
        reentrant=checkpointing == "reentrant",
        loss=_loss(point, shape),
        optimizer=Optimizer(kind="adamw", state_width=4 if "fp32" in point.optimizer else trainable, foreach=True),
        layer_kernels="liger" if has_kernels else "own",
        keeps_cache=keeps_cache,
        # Who publishes large checkpoints gives them one group of inputs a row, to save memory.
        gptq_group_size=-1 if shape.num_parameters > _LARGE_CHECKPOINT else 128,
    )


def _transformers(point: MeasuredPoint) -> tuple[int, ...]:
    return point.version("transformers") or (0,)


def _adapter(point: MeasuredPoint, shape: ModelShape) -> AdapterConfig:
    method = "none" if point.method == "full" else "lora" if point.method in ("qlora", "dora") else point.method
    if method not in METHODS:
        raise NotModelledError(f"the method {point.method} is not one that is modelled.")
    if method == "none":
        return AdapterConfig(method="none")
    if method == "oft" and (point.version("peft") or (1,)) < (0, 16):
        raise NotModelledError("OFT turned weights before PEFT 0.16, not inputs as it does now.")
    fields = METHODS[method].fields
    own = {name: value for name, value in point.extra.items() if name in fields}
    values = {"target_modules": point.target_modules, "num_virtual_tokens": point.num_virtual_tokens, **own}
    rank = next((name for name in ("r", "init_r", "oft_block_size") if name in fields), None)
    if rank is not None and rank not in own:
        # PEFT's rank of OFT is the number of blocks.
        values[rank] = shape.hidden_size // point.lora_r if rank == "oft_block_size" else point.lora_r
    if method == "lora":
        values |= {"lora_dropout": point.lora_dropout, "use_dora": point.method == "dora"}
    return AdapterConfig.model_validate({"method": method, **values})


def _width(dtype: str) -> int:
    """Return the bytes per element of a dtype as the files write it."""
    return 4 if dtype.startswith("fp32") else 2


def _precision(point: MeasuredPoint, base: BaseFormat) -> StepPrecision:
    """Return the widths of each part; 4-bit bases are prepared in one of three ways.

    PEFT's `prepare_model_for_kbit_training` holds everything unquantized at 32 bits; TRL before 1.0 did the same and cast
    embeddings and head back, which leaves the norms and with them the residual stream at 32 bits; other frameworks change nothing.
    """
    trainable, compute = _width(point.trainable_dtype), _width(point.compute_dtype)
    rest = trainable if point.method == "full" else _width(point.base_dtype)
    precision = StepPrecision(
        weights=rest,
        embeddings=rest,
        norms=rest,
        head=rest,
        compute=compute,
        adapter=trainable,
        autocast=compute if point.autocast and compute < 4 else None,
        is_float16=point.compute_dtype in ("fp16", "float16"),
    )
    if point.method != "full" and point.base_dtype.endswith("(norms/embeddings/lm_head fp32)"):
        return replace(precision, embeddings=4, norms=4, head=4)
    if base == "nf4" and "TRL" in point.framework and "accelerated-peft" not in point.framework:
        return replace(precision, norms=4)
    return precision


def _checkpointing(point: MeasuredPoint) -> Literal["none", "reentrant", "non_reentrant"]:
    if point.grad_checkpointing is False:
        return "none"
    is_plain = point.grad_checkpointing == "use_reentrant=False" or _transformers(point) >= (5,)
    return "non_reentrant" if is_plain else "reentrant"


def _loss(point: MeasuredPoint, shape: ModelShape) -> PlainLoss:
    if point.loss_path == "liger fused linear CE":
        return PlainLoss(path="linear_fused")
    transformers = point.version("transformers") or (5,)
    return PlainLoss(
        path="fused" if point.loss_path == "FOAK fused CE" else "full_logits",
        upcasts=shape.model_type not in _WITHOUT_UPCAST or transformers >= (4, 50),
        shifts=transformers < (4, 49),
        holds_narrow_logits=transformers >= (4, 46),
        converts_output=point.autocast and "TRL" in point.framework,
        holds_logits="held" in point.loss_path,
    )

"""From the settings of a published measurement to the step that was measured."""

import re
from typing import Literal

from engine.config.methods.registry import METHODS
from engine.config.run import AdapterConfig
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.memory.workload import (
    AttentionKernel,
    BaseFormat,
    Optimizer,
    OptimizerKind,
    Precision,
)
from engine.models.shape import ModelShape
from tests.benchmarks.published.gpus import is_before_ampere, memory_of_gpu
from tests.benchmarks.published.measurements import MeasuredPoint, observations
from tests.benchmarks.published.other_trainers import PlainLoss, PlainWorkload
from tests.benchmarks.published.setting_words import (
    base_format,
    has_double_quant,
    is_float16,
    is_nothing,
    method_kind,
    parts_of,
    width_of_dtype,
)
from tests.benchmarks.published.shapes import (
    PublishedSizes,
    dropouts_of,
    guess_model_type,
    known_sizes,
    published_shape,
)

# Memory of a device of which nothing is known, or only what its own measurement contradicts: no limit.
_UNKNOWN_BYTES = 1024 * 2**30
# Families whose loss did not cast the logits to 32 bits before they got transformers' common one (4.50).
_WITHOUT_UPCAST = frozenset({"gpt_bigcode", "gpt2"})
# Families that kept a cache while training with checkpointing, before layers learned to refuse one (5.0).
_WITH_CACHE = frozenset({"gpt_bigcode"})
_LARGE_CHECKPOINT = 30_000_000_000  # parameters


class DeclinedError(EngineError):
    """A measurement whose settings are not understood well enough for a figure."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "Nothing is predicted for it.")


def shape_of_point(point: MeasuredPoint) -> ModelShape:
    """The measured model's inventory.

    Raises:
        DeclinedError: If its sizes are neither given nor known.
    """
    value = point.arch
    transformers = point.version("transformers")
    experts_are_modules = transformers is None or transformers < (5,)
    if value is None:
        sizes = known_sizes(point.model_id)
        if sizes is None:
            raise DeclinedError(f"{point.model_id} is not known, and no sizes are given.")
        return published_shape(point.model_id, sizes, experts_are_modules=experts_are_modules)
    named = known_sizes(point.model_id)
    model_type = value.model_type or (named.model_type if named else guess_model_type(point.model_id))
    sizes = PublishedSizes(
        model_type=model_type,
        hidden_size=value.hidden_size,
        intermediate_size=value.intermediate_size,
        num_hidden_layers=value.num_layers,
        num_attention_heads=value.num_attention_heads,
        num_key_value_heads=value.num_kv_heads,
        head_dim=value.head_dim,
        vocab_size=value.vocab_size,
        tie_word_embeddings=value.tie_word_embeddings,
        num_experts=value.num_experts or (named.num_experts if named else 0),
        num_experts_per_tok=value.num_experts_per_tok or (named.num_experts_per_tok if named else 0),
        moe_intermediate_size=value.moe_intermediate_size or (named.moe_intermediate_size if named else None),
        max_position_embeddings=value.max_position_embeddings or (named.max_position_embeddings if named else None),
        **dropouts_of(model_type),
    )
    return published_shape(value.name or point.model_id, sizes, experts_are_modules=experts_are_modules)


def device_of_point(point: MeasuredPoint) -> Device:
    """The measured GPU, with all of its memory free; more than was measured on it, whatever it is called."""
    total = memory_of_gpu(point.gpu)
    if total is None or any(observation.bytes > total for observation in observations(point)):
        total = _UNKNOWN_BYTES
    return Device("cuda", 0, point.gpu, total, total, has_fast_bfloat16=not is_before_ampere(point.gpu))


def workload_of_point(point: MeasuredPoint, shape: ModelShape) -> PlainWorkload:
    """The step that was measured, by its settings alone.

    Raises:
        DeclinedError: If a setting is not understood.
    """
    base, adapter = _base_format(point), _adapter(point, shape)
    attention = _attention(point, shape)
    length = point.seq_len + adapter.traits.count_virtual_inputs(adapter)
    if not shape.rotary and shape.max_position_embeddings is not None:
        # Learned positions end there, so no longer row can have been trained on.
        length = min(length, shape.max_position_embeddings)
    checkpointing = _checkpointing(point)
    transformers = point.version("transformers")
    return PlainWorkload(
        adapter=adapter,
        batch_size=point.batch_size,
        length=length,
        base=base,
        double_quant=has_double_quant(point.quantization) or point.double_quant,
        precision=_precision(point, base),
        attention=attention,
        expands_key_values=attention == "efficient",
        checkpointing=checkpointing != "none",
        reentrant=checkpointing == "reentrant",
        loss=_loss(point, shape),
        optimizer=_optimizer(point),
        accumulates=point.gradient_accumulation_steps > 1,
        layer_kernels="liger"
        if any(part in point.framework.casefold() for part in ("foak", "unsloth", "liger"))
        else "own",
        keeps_cache=shape.model_type in _WITH_CACHE
        and checkpointing != "none"
        and transformers is not None
        and transformers < (5,),
        gptq_group_size=_gptq_group_size(point, shape),
        data_parallel=1 if _is_sharded(point) else point.n_gpus,
        sharded=point.n_gpus if _is_sharded(point) else 1,
    )


def _is_sharded(point: MeasuredPoint) -> bool:
    words = f"{point.framework} {point.launcher}".casefold()
    return point.n_gpus > 1 and any(part in words for part in ("fsdp", "zero3", "zero-3", "shard"))


def _adapter(point: MeasuredPoint, shape: ModelShape) -> AdapterConfig:
    kind = _method(point)
    if kind == "full":
        return AdapterConfig(method="none")
    traits = METHODS["lora" if kind == "dora" else kind]
    if kind == "oft" and (point.version("peft") or (1,)) < (0, 16):
        raise DeclinedError("OFT turned weights before PEFT 0.16, not inputs as it does now.")
    own = {name: value for name, value in point.extra.items() if name in traits.fields}
    values = {"target_modules": _targets(point), "num_virtual_tokens": point.num_virtual_tokens, **own}
    rank = next((name for name in ("r", "init_r", "oft_block_size") if name in traits.fields), None)
    if rank is not None and rank not in own:
        if point.lora_r is None:
            raise DeclinedError("no rank is given.")
        # PEFT's rank of OFT is the number of blocks.
        values[rank] = shape.hidden_size // point.lora_r if rank == "oft_block_size" else point.lora_r
    if kind in ("lora", "dora"):
        values |= {"lora_dropout": point.lora_dropout, "use_dora": kind == "dora"}
    return AdapterConfig.model_validate({"method": traits.name, **values})


def _targets(point: MeasuredPoint) -> tuple[str, ...] | Literal["all-linear"]:
    value = point.target_modules
    names = tuple(re.findall(r"[\w.]+", value)) if isinstance(value, str) and "," in value else value
    if isinstance(names, str):
        named = re.sub(r"[\s_]", "-", names.strip().casefold())
        return "all-linear" if named in ("all-linear", "all", "") else (names.strip(),)
    return names or "all-linear"


def _method(point: MeasuredPoint) -> str:
    result = method_kind(point.method)
    if result is None:
        raise DeclinedError(f"the method {point.method} is not one that is modelled.")
    return result[0]


def _base_format(point: MeasuredPoint) -> BaseFormat:
    base = base_format(point.quantization)
    if base is None:
        raise DeclinedError(f"the quantization {point.quantization} is not one that is modelled.")
    if base == "dense":  # left out, where another setting says it
        named = base_format(point.base_dtype)
        result = method_kind(point.method)
        promised = result is not None and result[1]
        return named if named in ("nf4", "fp4", "int8", "gptq") else "nf4" if promised else "dense"
    return base


def _gptq_group_size(point: MeasuredPoint, shape: ModelShape) -> int:
    """Inputs that share a scale. Who publishes large checkpoints gives them one group a row, to save memory."""
    value = point.extra.get("group_size")
    if isinstance(value, int) and value:
        return value
    return -1 if shape.num_parameters > _LARGE_CHECKPOINT else 128


def width_of(dtype: str) -> int:
    """Bytes per element of a dtype as people write it.

    Raises:
        DeclinedError: If it is not one that is known.
    """
    width = width_of_dtype(dtype)
    if width is None:
        raise DeclinedError(f"the dtype {dtype!r} is not one that is modelled.")
    return width


def _precision(point: MeasuredPoint, base: BaseFormat) -> Precision:
    """Precision of each part; 4-bit bases are prepared in one of three ways.

    PEFT's `prepare_model_for_kbit_training` holds everything unquantized at 32 bits; TRL before 1.0 did the same and cast
    embeddings and head back, which leaves the norms and with them the residual stream at 32 bits; other frameworks change nothing.
    """
    is_named_by_format = base_format(point.base_dtype) in ("nf4", "fp4", "int8", "gptq")
    weights = width_of(point.compute_dtype if is_named_by_format else point.base_dtype)
    rest = head = norms = weights
    words = point.base_dtype.casefold()
    compute = width_of(point.compute_dtype)
    if "fp32" in words.split("(", 1)[-1] and "(" in words:
        rest = head = norms = 4
    elif base in ("nf4", "fp4", "int8") and _trl_prepares(point):
        norms = 4
    trainable = width_of(point.trainable_dtype)
    full = _method(point) == "full"
    return Precision(
        weights=trainable if full else weights,
        embeddings=trainable if full else rest,
        norms=trainable if full else norms,
        head=trainable if full else head,
        compute=compute,
        adapter=trainable,
        autocast=compute if point.autocast and compute < 4 else None,
        is_float16=is_float16(point.compute_dtype),
    )


def _trl_prepares(point: MeasuredPoint) -> bool:
    words = point.framework.casefold()
    if "accelerated-peft" in words:
        return False
    trl = point.version("trl")
    return "trl" in words and (trl is None or trl < (1,))


def _checkpointing(point: MeasuredPoint) -> Literal["none", "reentrant", "non_reentrant"]:
    value = point.grad_checkpointing
    if value is False or is_nothing(str(value)):
        return "none"
    words = str(value).casefold().replace(" ", "")
    if "use_reentrant=false" in words or "non" in words:
        return "non_reentrant"
    if "use_reentrant=true" in words:
        return "reentrant"
    transformers = point.version("transformers")
    return "non_reentrant" if transformers is not None and transformers >= (5,) else "reentrant"


def _attention(point: MeasuredPoint, shape: ModelShape) -> AttentionKernel:
    words = point.attention.casefold()
    if "eager" in words:
        return "eager"
    if "flash" in words or words.startswith("fa"):
        return "flash"
    if "efficient" in words or "xformers" in words:
        return "efficient"
    if "math" in words:
        return "math"
    if "sdpa" in words or words in ("auto", "default", "torch"):
        if not is_before_ampere(point.gpu) and width_of(point.compute_dtype) == 2:
            return "flash"
        return "efficient" if shape.num_key_value_heads == shape.num_attention_heads else "math"
    raise DeclinedError(f"the attention {point.attention} is not one that is modelled.")


def _loss(point: MeasuredPoint, shape: ModelShape) -> PlainLoss:
    words = point.loss_path.casefold()
    transformers = point.version("transformers") or (5,)
    trainer = "trl" in point.framework.casefold() or "trainer" in point.framework.casefold()
    if (
        "liger" in words
        or "fused linear" in words
        or "cut cross" in words
        or "cut_cross" in words
        or "cce" in parts_of(words)
    ):
        return PlainLoss(path="linear_fused")
    if "chunk" in words:
        return PlainLoss(path="trained_positions", chunk_bytes=256 * 2**20)
    fused = any(part in words for part in ("foak", "unsloth", "fused"))
    return PlainLoss(
        path="fused" if fused else "full_logits",
        upcasts=shape.model_type not in _WITHOUT_UPCAST or transformers >= (4, 50),
        shifts="shift" in words or transformers < (4, 49),
        holds_narrow_logits=transformers >= (4, 46),
        converts_output=point.autocast and trainer,
        holds_logits="held" in words,
    )


def _optimizer(point: MeasuredPoint) -> Optimizer:
    words = point.optimizer.casefold()
    trainable = width_of(point.trainable_dtype)
    state = 4 if "fp32" in words else 2 if "bf16" in words or "bfloat16" in words else trainable
    eight_bit = "8bit" in parts_of(words) or "8bit" in "".join(parts_of(words))
    kind: OptimizerKind
    if "adam" in words:
        kind = "adamw_8bit" if eight_bit else "adamw"
    elif "adafactor" in words:
        kind = "adafactor"
    elif "sgd" in words:
        kind = "sgd_momentum" if "momentum" in words else "sgd"
    else:
        raise DeclinedError(f"the optimizer {point.optimizer} is not one that is modelled.")
    paged = "paged" in words
    return Optimizer(
        kind=kind,
        state_width=4 if paged and not eight_bit else state,
        fused="fused" in words or paged,
        foreach="fused" not in words and "single" not in words,
        paged=paged,
        master_weights="master" in words or (trainable == 2 and "fp32 states" in words),
    )

"""Build the objects of transformers, PEFT and TRL from a RunConfig."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers.utils import is_flash_attn_2_available
from trl import SFTConfig

from loratory.engine.config.rules import MIN_LEARNING_RATE_SHARE, optimizer_name
from loratory.engine.config.run import RunConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.errors import ConfigError, ModelError, Problem
from loratory.engine.models.batching import FLASH_ATTENTION, can_run_flash_attention
from loratory.engine.models.folder import family_in
from loratory.engine.models.source import ModelSource
from loratory.engine.training.distribution import attach_device_hooks, plan_layer_split
from loratory.engine.training.failure import is_out_of_memory
from loratory.engine.training.image_parts import ImageParts, image_parts_of, model_class_of
from loratory.engine.training.methods.registry import method_trainer
from loratory.engine.training.ops.attention import copy_shared_heads
from loratory.engine.training.placement import Placement, TrainingDtypes, quantization_of

# Settings that TRL calls the same.
_PASSED_ON = "num_train_epochs max_steps learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm seed logging_steps"


def load_model(source: ModelSource, config: RunConfig, precision: TrainingDtypes, placement: Placement) -> Any:
    """Load the base model onto its device, or its layers onto several, quantized where the settings say so.

    Raises:
        ConfigError: If it has fewer layers than there are devices to spread them over.
        ModelError: If its files cannot be loaded, or it is not a causal language model.
    """
    arguments: dict[str, Any] = {
        "dtype": precision.frozen,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "use_kernels": False,  # those of the Hub
        "low_cpu_mem_usage": True,
    }
    attention = choose_attention(config, placement)
    if attention is not None:
        arguments["attn_implementation"] = attention
    family = family_in(Path(source.location), source.name)
    quantization = quantization_of(config.model, precision.compute, family, sharded=placement.sharded)
    if quantization is not None:
        arguments["quantization_config"] = quantization
    if placement.layer_devices:
        arguments["device_map"] = plan_layer_split(source, config, placement.layer_devices)
    elif placement.sharded:  # no device holds the whole model
        arguments["device_map"] = {"": "cpu"}
    elif quantization is not None or placement.torch_device.type != "cpu":
        arguments["device_map"] = {"": placement.torch_device}
    try:
        model = model_class_of(family).from_pretrained(source.location, **arguments)
    except Exception as error:  # broken or foreign files surface as nearly any exception
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{source.name} cannot be loaded for training ({type(error).__name__}: {reason[0][:200] if reason else ''}).",
            "Choose a causal language model whose weights are in safetensors files, or another precision or attention.",
        ) from error
    if quantization is not None and (placement.torch_device.type == "cpu" or placement.sharded):
        unmap_weights(model)
    copy_shared_heads(precision.compute, placement.torch_indexes)
    model.config.use_cache = False
    if family is not None:
        ImageParts(family, config.vision).attach(model)
    if placement.layer_devices:
        attach_device_hooks(model)
    for module in model.modules():
        # bitsandbytes would repack 4-bit weights for inference at the first measurement, which rounds their scales and
        # cannot be trained through.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def unmap_weights(model: Any) -> None:
    """Copy what was not quantized out of the mapped weight files: one view keeps all pages that were read of its file."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def choose_attention(config: RunConfig, placement: Placement) -> str | None:
    """Return the attention kernel as transformers names it; None leaves it to transformers: sdpa where available, else eager.

    Flash attention is taken where it is installed and can run on each of its GPUs.
    """
    setting = config.model.attn_implementation
    if setting != "auto":
        return setting
    runs = all(can_run_flash_attention(config, device) for device in placement.devices)
    return FLASH_ATTENTION if runs and is_flash_attn_2_available() else None


def add_adapter(model: Any, config: RunConfig, source: ModelSource) -> Any:
    """Put the configured adapter on a model and freeze the rest; for full fine-tuning, make everything trainable.

    The caller seeds torch first: the adapter starts from random numbers. Trained parameters end in float32.

    Raises:
        ConfigError: If the targets match nothing, or PEFT cannot adapt one of them.
    """
    parts = image_parts_of(model)
    if parts is not None:
        parts.freeze(model)
    if config.adapter.traits.trains_all:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parts is None or parts.training_of(name) in (None, "full"))
        train_in_float32(model)
        return model
    if parts is not None and config.adapter.traits.virtual_tokens != "none":
        _require_virtual_tokens(parts, config)
    method = method_trainer(config.adapter.method)
    try:
        if config.adapter.traits.virtual_tokens == "inputs":
            _require_equal_widths(model)
        peft_model = get_peft_model(model, method.peft_config(model, config.adapter, source))
    except ValueError as error:  # a target that is not a linear layer, a family that PEFT has no prefix for …
        reason = str(error).strip().splitlines()[0][:300]
        raise ConfigError([Problem("adapter", f"PEFT cannot put this adapter on {source.name}: {reason}")]) from error
    for settings in peft_model.peft_config.values():
        method.publish(settings, source)
    train_in_float32(peft_model)
    return peft_model


def _require_virtual_tokens(parts: ImageParts, config: RunConfig) -> None:
    """Refuse virtual tokens in a family that must see tokens to know where images are."""
    if not parts.family.takes_virtual_tokens:
        label = config.adapter.traits.label
        message = (
            f"{parts.family.label} finds the positions of images by its tokens, which {label} changes; choose LoRA."
        )
        raise ConfigError([Problem("adapter.method", message)])


def _require_equal_widths(model: Any) -> None:
    """Refuse a model that projects its embeddings: PEFT makes virtual tokens as wide as the layers."""
    width, hidden = model.get_input_embeddings().weight.shape[-1], model.config.get_text_config().hidden_size
    if width != hidden:
        raise ValueError(
            f"its embeddings have {width:,} features and its layers {hidden:,}, and virtual tokens need the same of both; "
            "use LoRA."
        )


def train_in_float32(model: torch.nn.Module) -> None:
    """Hold every trained parameter in float32."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def training_arguments(
    training: TrainingConfig, output_folder: Path, precision: TrainingDtypes, placement: Placement
) -> Any:
    """Build TRL's `SFTConfig` for our trainer, which batches, evaluates and saves by itself."""
    schedule = {"min_lr_rate": MIN_LEARNING_RATE_SHARE} if training.lr_scheduler_type == "cosine_with_min_lr" else {}
    arguments = SFTConfig(
        output_dir=str(output_folder),
        **training.model_dump(include=set(_PASSED_ON.split())),
        # One batch of the trainer's loop is one optimizer step of ours; `loratory.engine.data.step_plan` divides it.
        per_device_train_batch_size=training.per_device_train_batch_size * training.gradient_accumulation_steps,
        gradient_accumulation_steps=1,
        lr_scheduler_kwargs=schedule,
        optim=optimizer_name(training.optim, placement.torch_device.type),
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        data_seed=training.seed,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a NaN loss
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=placement.torch_device.type == "cpu",
        # bfloat16 needs no mixed precision of the loop: frozen weights are held in it, and our trainer casts where it must.
        bf16=False,
        fp16=precision.needs_loss_scaling,
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # `PassTensors.to` pins
        dataset_kwargs={"skip_prepare_dataset": True},
        average_tokens_across_devices=True,
    )
    if arguments.n_gpu > 1:
        # One process that sees several GPUs would copy the model to all of them at each pass (nn.DataParallel).
        arguments._n_gpu = 1
    return arguments

"""Training settings under the names of transformers, PEFT and TRL: the rule of both forms of a script.

A setting that neither form passes on is in `NOT_EXPORTED`, with the reason.
"""

from collections.abc import Mapping
from typing import Any

from engine.config.rules import CHECKPOINTS, MEASUREMENTS, keeps_best, optimizer_name
from engine.config.run import RunConfig

_UNSET = object()
_PEFT_DEFAULTS: Mapping[str, Any] = {"lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False}
_TRL_DEFAULTS: Mapping[str, Any] = {
    "fp16": False,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "packing": False,
    "report_to": "none",
    "save_strategy": "steps",
    "seed": 42,
    "use_cpu": False,
    "weight_decay": 0.0,
}

# The run's own trainer ends a cosine_with_min_lr schedule at this share of the first learning rate.
MIN_LEARNING_RATE_SHARE = 0.1

NOT_EXPORTED: Mapping[str, str] = {
    "report_to": "a script logs into log_history.json; trackers need accounts and packages of their own",
    "train_sampling_strategy": "the order of rows follows from whether rows were padded, which the facts hold",
}


def trainer_arguments(config: RunConfig, *, compute: str, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` by which a script takes the run's steps, but for those that count rows or steps."""
    training = config.training
    checkpointing = (
        {"activation_checkpointing_kwargs": {"use_reentrant": False}} if training.gradient_checkpointing else {}
    )
    return {
        **_common_arguments(config, on_cpu=on_cpu),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": optimizer_name(training.optim, "cpu" if on_cpu else "cuda"),
        "activation_checkpointing": training.gradient_checkpointing,
        **checkpointing,
        "bf16": compute == "bfloat16" and not config.adapter.traits.trains_in_compute_dtype(config.adapter),
        "fp16": compute == "float16",
        "use_cpu": on_cpu,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        **({"eval_on_start": True} if config.dataset.eval_fraction > 0 else {}),
    }


def short_trainer_arguments(config: RunConfig, *, compute: str, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` in the short form: those that differ from its defaults."""
    training = config.training
    measures = config.dataset.eval_fraction > 0
    found = {
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        **_common_arguments(config, on_cpu=on_cpu),
        "max_length": training.max_length,
        "packing": training.packing,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": optimizer_name(training.optim, "cpu" if on_cpu else "cuda"),
        "bf16": compute == "bfloat16",
        "fp16": compute == "float16",
        "use_cpu": on_cpu,
        "seed": training.seed,
        # A share of all steps, where no number is set.
        **({"eval_steps": training.eval_steps or 1 / MEASUREMENTS} if measures else {}),
        "save_steps": training.save_steps or 1 / CHECKPOINTS,
    }
    if measures and keeps_best(training):
        found["save_steps"] = found["eval_steps"]  # transformers can only restore what it saved
    if not training.gradient_checkpointing:
        found["gradient_checkpointing"] = False
    return {name: value for name, value in found.items() if _TRL_DEFAULTS.get(name, _UNSET) != value}


def _common_arguments(config: RunConfig, *, on_cpu: bool) -> dict[str, Any]:
    training = config.training
    measures = config.dataset.eval_fraction > 0
    wanted = {"use_liger_kernel": training.use_liger_kernel, "torch_compile": training.torch_compile}
    found: dict[str, Any] = {"num_train_epochs": training.num_train_epochs}
    if training.max_steps > 0:
        found["max_steps"] = training.max_steps
    found |= {"learning_rate": training.learning_rate, "lr_scheduler_type": training.lr_scheduler_type}
    if training.lr_scheduler_type == "cosine_with_min_lr":
        found["lr_scheduler_kwargs"] = {"min_lr_rate": MIN_LEARNING_RATE_SHARE}
    found |= {
        "warmup_steps": training.warmup_steps,
        "logging_steps": training.logging_steps,
        "report_to": "none",
        "save_strategy": "steps",
        "save_total_limit": training.save_total_limit,
        **({"eval_strategy": "steps"} if measures else {}),
        **({name: True for name, is_wanted in wanted.items() if is_wanted and not on_cpu}),
    }
    if measures and keeps_best(training):
        found |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return found


def quantization_arguments(config: RunConfig, compute: str) -> dict[str, Any]:
    """Return the arguments of `BitsAndBytesConfig`."""
    if config.model.quantization == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": config.model.quantization,
        "bnb_4bit_use_double_quant": config.model.double_quant,
        "bnb_4bit_compute_dtype": compute,
    }


def model_arguments(config: RunConfig, *, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that do not depend on the model's name."""
    found: dict[str, Any] = {}
    if config.model.attn_implementation != "auto":
        found["attn_implementation"] = config.model.attn_implementation
    if config.run.spread_over > 1:
        found["device_map"] = "balanced"
    elif config.model.quantization != "none" or not on_cpu:
        found["device_map"] = {"": "cpu" if on_cpu else 0}
    return found


def peft_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of PEFT's configuration class, without those that are PEFT's defaults."""
    arguments = config.adapter.traits.script_arguments(config.adapter)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
        if _PEFT_DEFAULTS.get(name, _UNSET) != value
    }

"""The call of `SFTConfig` in a stand-alone script: a run's training settings under TRL's names."""

from engine.config.run import RunConfig
from engine.export.script.training import ModelFacts

# The run's own trainer ends a cosine_with_min_lr schedule at this share of the first learning rate.
_MIN_LEARNING_RATE_SHARE = 0.1


def arguments_code(config: RunConfig, facts: ModelFacts) -> str:
    """The arguments, one a line."""
    training = config.training
    measures = config.dataset.eval_fraction > 0
    keeps_best = measures and (training.load_best_model_at_end or training.early_stopping_patience is not None)
    optim = "adamw_torch_fused" if training.optim == "adamw_torch" else training.optim
    casts = facts.compute == "bfloat16" and not config.adapter.traits.trains_in_compute_dtype(config.adapter)
    values: list[tuple[str, str]] = [
        ("output_dir", "options.output"),
        ("num_train_epochs", f"{training.num_train_epochs:g}"),
    ]
    if training.max_steps > 0:
        values.append(("max_steps", f"{training.max_steps}"))
    values += [
        ("per_device_train_batch_size", "BATCH"),
        ("gradient_accumulation_steps", "ACCUMULATE"),
        ("learning_rate", f"{training.learning_rate!r}"),
        ("lr_scheduler_type", f'"{training.lr_scheduler_type}"'),
    ]
    if training.lr_scheduler_type == "cosine_with_min_lr":
        values.append(("lr_scheduler_kwargs", f'{{"min_lr_rate": {_MIN_LEARNING_RATE_SHARE}}}'))
    values += [
        ("warmup_steps", f"{training.warmup_steps!r}"),
        ("weight_decay", f"{training.weight_decay!r}"),
        ("max_grad_norm", f"{training.max_grad_norm!r}"),
        ("optim", f'"{optim}"'),
        ("activation_checkpointing", f"{training.gradient_checkpointing}"),
    ]
    if training.gradient_checkpointing:
        values.append(("activation_checkpointing_kwargs", '{"use_reentrant": False}'))
    if not facts.on_cpu:
        wanted = [("use_liger_kernel", training.use_liger_kernel), ("torch_compile", training.torch_compile)]
        values += [(name, "True") for name, is_wanted in wanted if is_wanted]
    values += [
        ("seed", "SEED"),
        ("bf16", f"{casts}"),
        ("fp16", f"{facts.compute == 'float16'}"),
        ("use_cpu", f"{facts.on_cpu}"),
        ("logging_steps", f"{training.logging_steps}"),
        ("logging_first_step", "True"),
        ("logging_nan_inf_filter", "False"),
        ("report_to", '"none"'),
        ("disable_tqdm", "True"),
    ]
    if measures:
        values += [
            ("eval_strategy", '"steps"'),
            ("eval_steps", f"{training.eval_steps}" if training.eval_steps else "max(1, math.ceil(steps / 10))"),
            ("eval_on_start", "True"),
        ]
    every = f"{training.save_steps}" if training.save_steps else "max(1, math.ceil(steps / 5))"
    if keeps_best:  # the best can only be gone back to if it was saved
        every = f"{training.eval_steps}" if training.eval_steps else "max(1, math.ceil(steps / 10))"
    values += [
        ("save_strategy", '"steps"'),
        ("save_steps", every),
        ("save_total_limit", f"{training.save_total_limit}"),
    ]
    if keeps_best:
        values += [
            ("load_best_model_at_end", "True"),
            ("metric_for_best_model", '"eval_loss"'),
            ("greater_is_better", "False"),
        ]
    values += [
        ("max_length", "None"),
        ("dataset_kwargs", '{"skip_prepare_dataset": True}'),
        ("remove_unused_columns", "False"),
        ("dataloader_pin_memory", "False"),
    ]
    return "".join(f"        {name}={value},\n" for name, value in values)

"""Settings that are fine alone and cannot work together."""

from collections.abc import Callable
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.errors import Problem


class PairRule(NamedTuple):
    """A refusal that involves several fields; `explain` returns the message, or None where the pair is fine."""

    field: str  # where the problem is shown
    involves: tuple[str, ...]  # every field that `explain` reads
    explain: Callable[[RunConfig], str | None]


def _prefix_with_checkpointing(config: RunConfig) -> str | None:
    if config.adapter.method == "prefix_tuning" and config.training.gradient_checkpointing:
        return (
            "prefix tuning cannot be combined with gradient checkpointing, which drops the learned keys and values; "
            "switch one of the two off."
        )
    return None


def _prefix_fills_the_context(config: RunConfig) -> str | None:
    adapter, training = config.adapter, config.training
    if adapter.method == "prefix_tuning" and adapter.num_virtual_tokens >= training.max_length:
        return (
            f"{adapter.num_virtual_tokens} virtual tokens leave no room in rows of {training.max_length} tokens; "
            "use fewer, 10 to 50 is usual."
        )
    return None


def _prefix_with_packing(config: RunConfig) -> str | None:
    if config.adapter.method == "prefix_tuning" and config.training.packing:
        return "packing joins rows, and only the first of them would see the learned prefix; switch packing off."
    return None


def _full_on_quantized(config: RunConfig) -> str | None:
    if config.adapter.method == "none" and config.model.quantization != "none":
        return (
            f"full fine-tuning cannot train {config.model.quantization} weights; choose quantization none, or a LoRA."
        )
    return None


def _biases_of_quantized_layers(config: RunConfig) -> str | None:
    if config.adapter.method == "lora" and config.adapter.bias != "none" and config.model.quantization != "none":
        return (
            f"bitsandbytes rounds the biases beside {config.model.quantization} weights to 16 bits at every pass, so that "
            "most of what they learn is lost; set bias to none, or quantization to none."
        )
    return None


def _warm_start_without_adapter(config: RunConfig) -> str | None:
    if config.adapter.method == "none" and config.adapter.warm_start is not None:
        return "full fine-tuning has no adapter to start from; give the trained folder as model.id instead."
    return None


def _best_without_held_out(config: RunConfig) -> str | None:
    if config.training.load_best_model_at_end and config.dataset.eval_fraction == 0:
        return "the best weights are those of the lowest held-out loss; set dataset.eval_fraction above 0."
    return None


def _early_stopping_without_held_out(config: RunConfig) -> str | None:
    if config.training.early_stopping_patience is not None and config.dataset.eval_fraction == 0:
        return "stopping early needs a held-out loss; set dataset.eval_fraction above 0, or leave this empty."
    return None


def _feedforward_outside_targets(config: RunConfig) -> str | None:
    adapter = config.adapter
    if adapter.method != "ia3" or not adapter.feedforward_modules or isinstance(adapter.target_modules, str):
        return None
    outside = [name for name in adapter.feedforward_modules if name not in adapter.target_modules]
    if outside:
        return f"{', '.join(outside)} must be among target_modules too; add them there, or take them out here."
    return None


def _completion_of_conversations(config: RunConfig) -> str | None:
    dataset = config.dataset
    if dataset.format == "text" and dataset.train_on in ("assistant", "last_assistant", "completion"):
        return f"plain text has no {dataset.train_on.replace('_', ' ')} part; set train_on to all."
    return None


def _spread_over_one_device(config: RunConfig) -> str | None:
    if config.run.device_map == "none" or config.run.spread_over > 1:
        return None
    devices = config.run.devices
    named = f"is {devices}" if isinstance(devices, str) else f"names {len(devices)}"
    return (
        f"{config.run.device_map} divides layers among the GPUs that run.devices names, which {named}; name two or more "
        "there, such as [0, 1], or set none."
    )


def _spread_by_several_processes(config: RunConfig) -> str | None:
    if config.run.device_map != "none" and config.run.launcher != "local":
        return (
            f"with launcher {config.run.launcher} every GPU has a process and a whole model of its own; set the launcher "
            "to local to divide the layers, or device_map to none."
        )
    return None


def _spread_with_paged_optimizer(config: RunConfig) -> str | None:
    if config.run.device_map != "none" and config.training.optim.startswith("paged_"):
        return (
            f"{config.training.optim} waits for one GPU alone before its state moves, and this run's is on several; "
            "adamw_8bit is the nearest."
        )
    return None


PAIR_RULES: tuple[PairRule, ...] = (
    PairRule(
        "training.gradient_checkpointing",
        ("adapter.method", "training.gradient_checkpointing"),
        _prefix_with_checkpointing,
    ),
    PairRule(
        "adapter.num_virtual_tokens",
        ("adapter.method", "adapter.num_virtual_tokens", "training.max_length"),
        _prefix_fills_the_context,
    ),
    PairRule("training.packing", ("adapter.method", "training.packing"), _prefix_with_packing),
    PairRule("model.quantization", ("adapter.method", "model.quantization"), _full_on_quantized),
    PairRule("adapter.bias", ("adapter.method", "adapter.bias", "model.quantization"), _biases_of_quantized_layers),
    PairRule("adapter.warm_start", ("adapter.method", "adapter.warm_start"), _warm_start_without_adapter),
    PairRule(
        "training.load_best_model_at_end",
        ("training.load_best_model_at_end", "dataset.eval_fraction"),
        _best_without_held_out,
    ),
    PairRule(
        "training.early_stopping_patience",
        ("training.early_stopping_patience", "dataset.eval_fraction"),
        _early_stopping_without_held_out,
    ),
    PairRule(
        "adapter.feedforward_modules",
        ("adapter.method", "adapter.feedforward_modules", "adapter.target_modules"),
        _feedforward_outside_targets,
    ),
    PairRule("run.device_map", ("run.device_map", "run.devices"), _spread_over_one_device),
    PairRule("run.launcher", ("run.device_map", "run.launcher"), _spread_by_several_processes),
    PairRule("training.optim", ("run.device_map", "training.optim"), _spread_with_paged_optimizer),
    PairRule("dataset.train_on", ("dataset.format", "dataset.train_on"), _completion_of_conversations),
)


def pair_problems(config: RunConfig, ignoring: frozenset[str] = frozenset()) -> list[Problem]:
    """List every pair of settings that cannot work, except where a field in `ignoring` is involved."""
    problems = []
    for rule in PAIR_RULES:
        if ignoring.intersection(rule.involves):
            continue
        message = rule.explain(config)
        if message is not None:
            problems.append(Problem(rule.field, message))
    return problems

"""How a PEFT method is put on a model, on which of its modules, and what it does while the model trains."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import peft
import torch

from loratory.engine.config.methods.ia3 import FEEDFORWARD_ENDINGS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.memory.structure import ALL_LINEAR, ends_with_one_of, match_pattern, stacked_experts_among
from loratory.engine.models.shape import EXPERT_PROJECTIONS
from loratory.engine.models.source import ModelSource
from loratory.engine.training.image_parts import image_parts_of


class MethodTrainer:
    """One method in training. It is stateless: its state is in the model."""

    def peft_config(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> Any:
        """Build PEFT's configuration.

        Raises:
            ConfigError: If target modules or saved modules match nothing.
            ValueError: If PEFT refuses the settings.
        """
        arguments = adapter.traits.peft_arguments(adapter) | self.model_arguments(model, adapter, source)
        return getattr(peft, adapter.traits.peft_class)(task_type="CAUSAL_LM", **arguments)

    def model_arguments(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> dict[str, Any]:  # noqa: ARG002
        """Choose those of PEFT's arguments that depend on the model, such as the modules that get an adapter."""
        if not adapter.traits.adapts_layers:
            return {}
        saved = choose_saved_modules(model, adapter)
        return {"modules_to_save": saved, "target_modules": choose_targets(model, adapter)}

    def publish(self, config: Any, source: ModelSource) -> None:
        """Replace local paths in a configuration by names that other machines can resolve."""
        config.base_model_name_or_path = source.hub_id or source.location
        config.revision = source.revision

    def prepare(self, model: Any) -> int:  # noqa: ARG002
        """Change the adapted model for training; returns how many trained tensors need no autocast afterwards."""
        return 0

    def initialize(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> None:
        """Replace the random weights of a new adapter, if the method starts from others."""

    def observing(self, model: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context of a first pass without gradient, from which `prepare` may learn what the model calls how."""
        return nullcontext()

    def step(self, model: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context of all passes of one optimizer step, in which no trained weight changes."""
        return nullcontext()

    def optimizations(self, model: Any) -> dict[str, str]:  # noqa: ARG002
        """Return those of `loratory.engine.config.optimizations` that are the method's: why one is not used, "" where it is."""
        return {}

    def begin(self, model: Any, total_steps: int) -> None:
        """Prepare for this many optimizer steps, before the first one or a resumed one.

        Raises:
            ConfigError: If the settings need more steps.
        """

    def penalty(self, model: Any) -> torch.Tensor | None:  # noqa: ARG002
        """Return what is added to the loss of every optimizer step, or None."""
        return None

    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Adjust the adapter after optimizer step `step`, counted from 1, while its gradients are still there."""

    def saving(self, model: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context in which PEFT saves the adapter."""
        return nullcontext()

    def load_weights(self, model: Any, weights: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """Give a freshly made adapter weights saved with a `config`; returns what PEFT reports about missing and unexpected ones."""
        return peft.set_peft_model_state_dict(model, weights)

    def state(self, model: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return what a checkpoint must hold in addition to the adapter's weights: tensors and plain values, nested."""
        return {}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


_QUANTIZED = frozenset({"Linear4bit", "Linear8bitLt"})


def choose_targets(model: Any, adapter: AdapterConfig) -> str | list[str]:
    """Choose PEFT's `target_modules`: `all-linear`, or names that each match a linear layer of this model.

    PEFT would put adapters on stacked experts too, multiplied out to the size of all experts at each pass;
    there, `all-linear` becomes the names of the linear layers.

    A regular expression is matched here, with a timeout, and becomes the names that it matches: PEFT would match it again,
    without one.

    Raises:
        ConfigError: If a name or the expression matches nothing, or would adapt the output head.
    """
    parts, head, has_experts = image_parts_of(model), _output_head_name(model), has_stacked_experts(model)
    linear = linear_module_names(model)
    if parts is not None:
        return parts.target_expression(choose_names(model, adapter), [name for name, _ in model.named_modules()])
    if adapter.target_modules == ALL_LINEAR:
        if not has_experts:
            return ALL_LINEAR
        return sorted({_last_part(name) for name in linear if name != head} - EXPERT_PROJECTIONS)
    names = _match_targets(adapter.target_modules, linear, head)
    if has_experts and (experts := stacked_experts_among(names)):
        raise _refusal(
            f"{', '.join(experts)} would mean the stacked experts of this model, which take no adapter here."
        )
    return names


def choose_names(model: Any, adapter: AdapterConfig) -> list[str]:
    """Choose the linear modules of a vision-language model that get an adapter, by their full names.

    Raises:
        ConfigError: As `choose_targets`.
    """
    parts, head, targets = image_parts_of(model), _output_head_name(model), adapter.target_modules
    assert parts is not None
    names = [name for name in linear_module_names(model) if parts.is_adapted(name)]
    patterns = (
        [name for name in names if name != head] if targets == ALL_LINEAR else _match_targets(targets, names, head)
    )
    chosen = [name for name in names if ends_with_one_of(name, patterns)]
    for part, path in (("tower", parts.family.tower), ("projector", parts.family.projector)):
        is_adapted = any(parts.family.part_of(name) == part for name in chosen)
        if getattr(parts.vision, part) == "adapter" and not is_adapted:
            message = f"{path} of {parts.family.label} has no linear layer among the targets; set full, or frozen."
            raise _refusal(message, f"vision.{part}")
    return chosen


def _match_targets(patterns: str | Sequence[str], linear: Sequence[str], head: str | None) -> list[str]:
    """Return the linear modules that an expression matches, or the endings of names, each of which must match one."""
    available = f"this model's linear modules are {', '.join(dict.fromkeys(map(_last_part, linear)))}."
    if isinstance(patterns, str):
        names = match_pattern(patterns, [name for name in linear if name != head])
        if not names:
            raise _refusal(f"the regular expression {patterns!r} matches no module; {available}")
        return names
    if not patterns:
        raise _refusal(f"it is empty; {available}")
    missing = [ending for ending in patterns if not any(ends_with_one_of(name, (ending,)) for name in linear)]
    if missing:
        raise _refusal(f"{', '.join(missing)} match{'es' if len(missing) == 1 else ''} no module; {available}")
    if head is not None and ends_with_one_of(head, patterns):
        raise _refusal(
            f"{head} is the output head, which takes no adapter; to train it, name it under modules_to_save."
        )
    return list(patterns)


def choose_saved_modules(model: Any, adapter: AdapterConfig) -> list[str] | None:
    """Choose PEFT's `modules_to_save`: names of modules to be trained in full; None where there are none.

    PEFT takes every module whose name ends with these letters, so norm would mean input_layernorm too; where that is
    more than was named, it gets whole names.

    Raises:
        ConfigError: If a name matches nothing, or what it matches has no weights that can be trained.
    """
    parts = image_parts_of(model)
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and (parts is None or parts.training_of(name) is None)
    }
    selected: set[str] = set()
    for pattern in adapter.modules_to_save:
        matches = [name for name in modules if ends_with_one_of(name, (pattern,))]
        if not matches:
            available = dict.fromkeys(last for name in modules if not (last := _last_part(name)).isdigit())
            message = f"{pattern} matches no module; this model's are {', '.join(available)}."
            raise _refusal(message, "adapter.modules_to_save")
        for name in matches:
            _require_trainable(name, modules[name], pattern)
        selected.update(matches)
    if parts is not None:
        return sorted({*selected, *parts.saved_modules(model)}) or None
    if not selected:
        return None
    by_letters = {name for name in modules if name.endswith(adapter.modules_to_save)}
    return list(adapter.modules_to_save) if by_letters == selected else sorted(selected)


def _require_trainable(name: str, module: torch.nn.Module, pattern: str) -> None:
    """Refuse to train a module in full that cannot be."""
    if any(type(part).__name__ in _QUANTIZED for part in module.modules()):
        fix = f"quantized weights cannot be trained; take {pattern} out, or set model.quantization to none."
        raise _refusal(f"{name} is quantized, and {fix}", "adapter.modules_to_save")
    if next(module.parameters(), None) is None:
        raise _refusal(f"{name} has no weights to train; take {pattern} out.", "adapter.modules_to_save")


def has_stacked_experts(model: Any) -> bool:
    """Return whether experts are stacked in single parameters: transformers/integrations/moe.py."""
    return any(
        "Expert" in type(module).__name__ and any(p.dim() == 3 for p in module.parameters(recurse=False))
        for module in model.modules()
    )


def choose_ia3_targets(model: Any, adapter: AdapterConfig) -> dict[str, list[str]]:
    """Choose PEFT's arguments for IA3, endings of names: all targets, and the feed-forward modules among them.

    Feed-forward modules are as configured, else those that are feed-forward layers by their name.

    Raises:
        ConfigError: As `choose_targets`.
    """
    is_text, head = image_parts_of(model) is None, _output_head_name(model)
    patterns = choose_targets(model, adapter) if is_text else choose_names(model, adapter)
    names = [name for name in linear_module_names(model) if name != head]
    targets = [name for name in names if patterns == ALL_LINEAR or ends_with_one_of(name, patterns)]
    endings = adapter.feedforward_modules or FEEDFORWARD_ENDINGS
    feedforward = {ending for ending in endings if any(ends_with_one_of(name, (ending,)) for name in targets)}
    if not is_text:  # endings alone would mean modules that see images too
        return {"target_modules": targets, "feedforward_modules": [n for n in targets if ends_with_one_of(n, endings)]}
    if patterns == ALL_LINEAR:
        patterns = [_last_part(name) for name in targets]
    return {"target_modules": sorted({*patterns, *feedforward}), "feedforward_modules": sorted(feedforward)}


def linear_module_names(model: Any) -> list[str]:
    """Return the full names of the linear layers, quantized ones and GPT-2's included."""
    return [name for name, module in model.named_modules() if _is_linear(module)]


def _is_linear(module: Any) -> bool:
    if "Router" in type(module).__name__:  # such as PhimoeTopKRouter, which is a Linear that returns several tensors
        return False
    return type(module).__name__ in ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt", "Params4bit") or (
        hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")
    )


def _output_head_name(model: Any) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _refusal(message: str, field: str = "adapter.target_modules") -> ConfigError:
    return ConfigError([Problem(field, message)])

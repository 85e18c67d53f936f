"""The memory rule of each PEFT method, and what it trains, counted as PEFT does. The rule of a new method is added here."""

import math
from collections.abc import Iterable, Iterator, Sequence

from loratory.engine.config.run import AdapterConfig
from loratory.engine.config.vision import MODELS_OWN, VisionConfig
from loratory.engine.memory.autograd.tensors import Value
from loratory.engine.memory.layers.modules import base_projection
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods import structured
from loratory.engine.memory.methods.base import MemoryRule
from loratory.engine.memory.methods.lora import AdaLoraMemory, LoraMemory
from loratory.engine.memory.methods.virtual_tokens import PrefixTuningMemory, PromptTuningMemory, PTuningMemory
from loratory.engine.memory.persistent import TensorShape, TrainableCount
from loratory.engine.memory.structure import AdapterTargets, find_targets
from loratory.engine.models.shape import ModelShape, ModuleShape

MEMORY_RULES: dict[str, MemoryRule] = {
    "lora": LoraMemory(),
    "adalora": AdaLoraMemory(),
    "loha": structured.LoHaMemory(),
    "lokr": structured.LoKrMemory(),
    "oft": structured.OftMemory(),
    "vera": structured.VeraMemory(),
    "miss": structured.MissMemory(),
    "ia3": structured.Ia3Memory(),
    "prefix_tuning": PrefixTuningMemory(),
    "prompt_tuning": PromptTuningMemory(),
    "p_tuning": PTuningMemory(),
    "none": MemoryRule(),
}


@in_scope
def project(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Send x through one linear layer, adapter included."""
    if module.name not in r.targets.names:
        return base_projection(r, x, module)
    return MEMORY_RULES[r.workload.adapter.method].project(r, x, module)


def project_each(r: StepContext, x: Value, modules: Sequence[ModuleShape]) -> Iterator[Value]:
    """Send x through linear layers that share it, one after the other; the first computes those that are one function."""
    together = [module for module in modules if module.name in r.targets.names]
    cache: dict[str, Value] = {}
    for module in modules:
        if len(together) > 1 and module is together[0]:
            outer = r.tape.enter_scope()
            values = MEMORY_RULES[r.workload.adapter.method].project_together(r, x, together) or ()
            r.tape.leave_scope(outer, values)
            cache = {shared.name: value for shared, value in zip(together, values, strict=False)}
        yield cache[module.name] if module.name in cache else project(r, x, module)


def count_trainable(
    shape: ModelShape,
    adapter: AdapterConfig,
    targets: AdapterTargets | None = None,
    vision: VisionConfig = MODELS_OWN,
) -> TrainableCount:
    """Count what this fine-tune trains.

    Args:
        targets: As `find_targets` gives them, where they are known already.

    Raises:
        ConfigError: If `target_modules` match nothing.

    Source: PEFT `get_nb_trainable_parameters`: every named parameter once, tied ones at their first name.
    """
    method, rule = adapter.traits, MEMORY_RULES[adapter.method]
    if method.trains_all:
        trained = [module for module in shape.modules if vision.training_of(module.part) in (None, "full")]
        count = sum(module.parameters for module in trained) if shape.takes_images else shape.num_parameters
        return TrainableCount(shape.num_parameters, count, 0, _group_by_decay(trained))
    targets = targets or find_targets(shape, adapter, vision)
    ours = [
        *rule.virtual_token_tensors(shape, adapter),
        *(tensor for module in targets.modules for tensor in rule.layer_tensors(module, adapter)),
    ]
    copies, copies_apart = _group_by_decay(targets.saved_in_full, as_copies=True)
    adapter_parameters = sum(map(math.prod, (*ours, *copies, *copies_apart)))
    frozen = rule.frozen_parameters(adapter, targets.modules)
    biases = _trained_biases(shape, adapter, targets.modules)
    return TrainableCount(
        total=shape.num_parameters + adapter_parameters + frozen,
        trainable=adapter_parameters + sum(map(math.prod, biases)),
        adapter=adapter_parameters,
        groups=((*ours, *copies), (*copies_apart, *biases)),
        resident=frozen + rule.buffer_elements(adapter, targets.modules),
    )


def _trained_biases(
    shape: ModelShape, adapter: AdapterConfig, targets: Sequence[ModuleShape]
) -> tuple[TensorShape, ...]:
    """Return the base model's own biases that are trained; they add no parameter."""
    # Source: PEFT `LoraModel._mark_only_adapters_as_trainable`.
    if adapter.bias == "none" or "bias" not in adapter.traits.fields:
        return ()
    chosen = shape.modules if adapter.bias == "all" else targets
    return tuple((module.bias_parameters,) for module in chosen if module.has_bias)


def _group_by_decay(
    modules: Iterable[ModuleShape], *, as_copies: bool = False
) -> tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]:
    """Return the tensors of whole modules, or of what replaces them: what may decay, then norms and biases.

    Args:
        as_copies: A tied module, whose weight is counted elsewhere, becomes a tensor of its own when it is copied.

    Source: `Trainer.get_decay_parameter_names` in transformers/trainer.py.
    """
    decay: list[TensorShape] = []
    apart: list[TensorShape] = []
    for module in modules:
        is_copied = as_copies and module.tied_to is not None
        total = module.in_features * module.out_features if is_copied else module.parameters
        if module.bare_parameters and total:
            parameters = module.bare_parameters.items()
            weights = [shape for name, shape in parameters if not name.endswith("bias")]
            biases = [shape for name, shape in parameters if name.endswith("bias")]
        else:
            bias = module.bias_parameters if total > module.bias_parameters else 0
            weights = [_weight_shape(module, total - bias)] if total else []
            biases = [(bias,)] if bias else []
        (apart if module.kind == "norm" else decay).extend(weights)
        apart.extend(biases)
    return tuple(decay), tuple(apart)


def _weight_shape(module: ModuleShape, elements: int) -> TensorShape:
    """Return a weight's shape; one of unknown shape counts as a vector, for which optimizers keep the most state."""
    if module.kind == "norm" or elements != module.in_features * module.out_features:
        return (elements,)
    is_linear = module.kind == "linear"
    return (module.out_features, module.in_features) if is_linear else (module.in_features, module.out_features)

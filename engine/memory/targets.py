"""Which modules an adapter lands on, decided as PEFT decides it, without PEFT."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.config.run import AdapterConfig
from engine.errors import ConfigError, Problem, shorten
from engine.models.shape import EXPERT_PROJECTIONS, ModelShape, ModuleShape, PatternError, PatternMatcher

ALL_LINEAR = "all-linear"
_ADAPTABLE = ("linear", "conv1d", "embedding")


@dataclass(frozen=True)
class AdapterTargets:
    """Modules that get adapter weights, and modules that are trained in full."""

    modules: tuple[ModuleShape, ...]
    saved_in_full: tuple[ModuleShape, ...] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(module.name for module in self.modules)


def find_targets(shape: ModelShape, adapter: AdapterConfig) -> AdapterTargets:
    """List the modules that `adapter` changes in a model of this shape.

    Raises:
        ConfigError: If no module matches, or the regular expression is broken or takes too long.

    Source: PEFT `check_target_module_exists` and `_maybe_include_all_linear_layers` (peft/tuners/tuners_utils.py).
    """
    if not adapter.traits.adapts_layers:
        return AdapterTargets(modules=())
    _refuse_unknown_saved(shape, adapter.modules_to_save)
    saved = tuple(module for module in shape.modules if _is_saved_in_full(module.name, adapter.modules_to_save))
    saved_names = {module.name for module in saved}
    adaptable = [
        module
        for module in shape.modules
        if module.name not in saved_names and module.kind in _ADAPTABLE and module.in_features > 0
    ]
    patterns = adapter.target_modules
    if patterns == ALL_LINEAR:
        modules = tuple(module for module in shape.all_linear() if module.name not in saved_names)
    elif isinstance(patterns, str):
        matched = set(match_pattern(patterns, [module.name for module in adaptable]))
        modules = tuple(module for module in adaptable if module.name in matched)
    else:
        modules = tuple(m for m in adaptable if ends_with_one_of(m.name, patterns))
    _refuse_experts(shape, modules)
    modules = tuple(module for module in modules if module.kind in adapter.traits.layer_kinds)
    if not modules:
        names = ", ".join(shape.linear_names()) or "none at all"
        patterns_text = patterns if isinstance(patterns, str) else ", ".join(patterns)
        message = f"{patterns_text or 'an empty list'!r} matches no module of {shape.architecture}; its linear modules are {names}."
        raise ConfigError([Problem("adapter.target_modules", message)])
    for module in modules:
        problem = adapter.traits.layer_problem(adapter, module.in_features, module.out_features)
        if problem is not None:
            raise ConfigError([Problem(*problem)])
    return AdapterTargets(modules, saved)


def _refuse_experts(shape: ModelShape, modules: Iterable[ModuleShape]) -> None:
    stacked_experts = stacked_experts_among(module.name for module in modules) if shape.has_stacked_experts else []
    if stacked_experts:
        problem = (
            f"{', '.join(stacked_experts)} would mean the stacked experts of {shape.architecture}, which take no adapter here; "
            f"its linear modules are {', '.join(shape.linear_names())}."
        )
        raise ConfigError([Problem("adapter.target_modules", problem)])


def ends_with_one_of(name: str, endings: Iterable[str]) -> bool:
    """Return whether a module's full name is one of `endings`, or ends with a dot and one: PEFT's rule."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _is_saved_in_full(name: str, modules_to_save: Iterable[str]) -> bool:
    """Return whether it is such a module, or inside one."""
    parts = name.split(".")
    wholes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(ends_with_one_of(whole, modules_to_save) for whole in wholes)


def _refuse_unknown_saved(shape: ModelShape, modules_to_save: Iterable[str]) -> None:
    names = [module.name for module in shape.modules]
    unknown = [wanted for wanted in modules_to_save if not any(_is_saved_in_full(name, (wanted,)) for name in names)]
    if unknown:
        last_parts = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
        problem = (
            f"{', '.join(unknown)} match{'es' if len(unknown) == 1 else ''} no module; this model's are {last_parts}."
        )
        raise ConfigError([Problem("adapter.modules_to_save", problem)])


def match_pattern(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a regular expression matches whole, with a limit on its time.

    Raises:
        ConfigError: If it is broken or takes too long.
    """
    try:
        return PatternMatcher().matching(pattern, names)
    except PatternError as error:
        message = f"the regular expression {shorten(pattern, 100)!r} {error}; list module names instead."
        raise ConfigError([Problem("adapter.target_modules", message)]) from error


def stacked_experts_among(names: Iterable[str]) -> list[str]:
    """Return the last parts of names that PEFT takes to mean stacked experts, in models that have these."""
    return sorted({name.rsplit(".", 1)[-1] for name in names} & EXPERT_PROJECTIONS)

"""Resolve the patterns of an adapter_config.json to module names, with a time limit that PEFT does not have."""

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from torch import nn

from loratory.engine.config.methods.registry import tensor_marks
from loratory.engine.errors import ModelError
from loratory.engine.models.shape import PLAIN_NAME, PatternError, PatternMatcher

_ALL_LINEAR = "all-linear"
_FIX = "Name the modules in a list in its adapter_config.json."
# PEFT compiles each key for each module, and Python keeps 512 compiled patterns.
_MAX_PATTERN_KEYS = 400


def base_module_names(model: nn.Module) -> list[str]:
    """Return the names of a base's modules, without those of attached adapters."""
    adapters = (f".{mark}" for mark in tensor_marks())
    marks = (".base_layer", ".modules_to_save", ".original_module", *adapters)
    return [name for name, _ in model.named_modules() if name and not any(mark in name for mark in marks)]


def resolve_patterns(config: PeftConfig, names: Sequence[str], adapter: str) -> None:
    """Replace the patterns of a configuration, in place, by the names that they match.

    Raises:
        ModelError: If a pattern is invalid or takes too long, or a name is invalid.
    """
    settings: Any = config
    matcher = PatternMatcher()
    field = ""
    try:
        for field in ("target_modules", "exclude_modules", "feedforward_modules"):
            pattern = getattr(settings, field, None)
            if isinstance(pattern, str) and pattern != _ALL_LINEAR:
                setattr(settings, field, set(matcher.matching(pattern, names)))
        for field in ("rank_pattern", "alpha_pattern"):
            if values := getattr(settings, field, None):
                setattr(settings, field, _resolve_keys(values, names, matcher))
        for field in ("modules_to_save", "layers_pattern"):
            value = getattr(settings, field, None) or ()
            for name in [value] if isinstance(value, str) else value:
                if not isinstance(name, str) or PLAIN_NAME.fullmatch(name) is None:
                    raise PatternError("is not a list of names")
        layers = getattr(settings, "layers_to_transform", None)
        if layers is not None and not all(
            isinstance(layer, int) for layer in ([layers] if isinstance(layers, int) else layers)
        ):
            raise PatternError("needs layers_to_transform to be a list of numbers")
    except PatternError as error:
        raise ModelError(f"The {field} of the adapter {adapter} {error}.", _FIX) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"The {field} of the adapter {adapter} is not of the form that PEFT writes.", _FIX) from error


def _resolve_keys(values: dict[str, Any], names: Sequence[str], matcher: PatternMatcher) -> dict[str, Any]:
    """Replace keys that are patterns by the full names that they match, in the same order."""
    by_name: dict[str, Any] = {}
    for key, value in values.items():
        if PLAIN_NAME.fullmatch(key):
            by_name[key] = value
            continue
        for name in matcher.matching(rf"(.*\.)?({key})$", names, whole=False):
            by_name.setdefault(name, value)
        if len(by_name) > max(_MAX_PATTERN_KEYS, len(values)):
            raise PatternError(f"matches more than {_MAX_PATTERN_KEYS} modules")
    return by_name

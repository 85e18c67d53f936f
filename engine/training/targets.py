"""Which modules of a loaded model an adapter lands on, checked before PEFT is asked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import regex

from engine.config.adapter import AdapterConfig
from engine.errors import ConfigError, Problem

ALL_LINEAR = "all-linear"

_REGEX_SECONDS = 1.0

# What IA3 treats as feed-forward where the person leaves it to the model's family.
# Source: peft/utils/constants.py, TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.
_FEEDFORWARD_ENDINGS = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")


def choose_targets(model: Any, adapter: AdapterConfig) -> str | list[str]:
    """What PEFT's `target_modules` gets: `all-linear`, or names that each match a linear layer of this model.

    A regular expression is matched here, with a limit on its time, and handed on as the names that it found: PEFT would
    match it again, without a limit.

    Raises:
        ConfigError: If a name or the expression matches nothing, or would adapt the output head.
    """
    linear = linear_module_names(model)
    wanted = adapter.target_modules
    if wanted == ALL_LINEAR:
        return ALL_LINEAR
    head = _output_head_name(model)
    if isinstance(wanted, str):
        names = _matching(wanted, [name for name in linear if name != head])
        if not names:
            raise _refusal(f"the regular expression {wanted!r} matches no module", linear)
        return names
    missing = [ending for ending in wanted if not any(_ends_with(name, ending) for name in linear)]
    if missing or not wanted:
        what = f"{', '.join(missing)} match{'es' if len(missing) == 1 else ''} no module" if wanted else "it is empty"
        raise _refusal(what, linear)
    if head is not None and any(_ends_with(head, ending) for ending in wanted):
        message = f"{head} is the output head, which takes no adapter; to train it, name it under modules_to_save."
        raise ConfigError([Problem("adapter.target_modules", message)])
    return list(wanted)


class Ia3Targets(NamedTuple):
    """What IA3 rescales, by endings of names; PEFT wants the second among the first."""

    target_modules: list[str]
    feedforward_modules: list[str]


def choose_ia3_targets(model: Any, adapter: AdapterConfig) -> Ia3Targets:
    """IA3's targets; feed-forward ones as configured, else those that are feed-forward layers by their name.

    Raises:
        ConfigError: As `choose_targets`.
    """
    chosen = choose_targets(model, adapter)
    head = _output_head_name(model)
    names = [name for name in linear_module_names(model) if name != head]
    targeted = [name for name in names if chosen == ALL_LINEAR or any(_ends_with(name, t) for t in chosen)]
    wanted = adapter.feedforward_modules or _FEEDFORWARD_ENDINGS
    feedforward = {ending for ending in wanted if any(_ends_with(name, ending) for name in targeted)}
    if chosen == ALL_LINEAR:
        chosen = [name.rsplit(".", 1)[-1] for name in targeted]
    return Ia3Targets(sorted({*chosen, *feedforward}), sorted(feedforward))


def linear_module_names(model: Any) -> list[str]:
    """Full names of the linear layers, quantized ones and GPT-2's included."""
    return [name for name, module in model.named_modules() if _is_linear(module)]


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt", "Params4bit") or (
        hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")
    )


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _output_head_name(model: Any) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        compiled = regex.compile(pattern)
        return [name for name in names if compiled.fullmatch(name, timeout=_REGEX_SECONDS)]
    except regex.error as error:
        message = f"{pattern!r} is no regular expression ({error}); name modules in a list instead."
    except TimeoutError:
        message = f"the regular expression {pattern!r} takes too long to match; name modules in a list instead."
    raise ConfigError([Problem("adapter.target_modules", message)])


def _refusal(what: str, linear: Sequence[str]) -> ConfigError:
    known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
    return ConfigError([Problem("adapter.target_modules", f"{what}; this model's linear modules are {known}.")])

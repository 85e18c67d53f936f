"""Defaults that depend on other settings or on the rows: each a rule with its source, for settings that were not given.

A saved configuration has the values, so a later rule never changes an old run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.config.run import RunConfig

_LARGE_BATCH = 32  # rows a step
_SHORT_RUN = 300  # optimizer steps
_PATIENCE = 3  # of about ten evaluations
_LENGTH_MULTIPLE = 8  # tokens


@dataclass(frozen=True)
class KnownRows:
    """What is known of the sequences to train on."""

    count: int
    longest: int  # tokens


@dataclass(frozen=True)
class Suited:
    """A default that was chosen for a configuration."""

    value: Any
    to: str  # what it is suited to, in words; empty for the default of all others


class Rule(NamedTuple):
    """One such default; `choose` returns None where the Field's own default is right."""

    setting: str
    choose: Callable[[RunConfig, KnownRows | None], Suited | None]


def _learning_rate(config: RunConfig, _: KnownRows | None) -> Suited | None:
    """By method; the sources are with each method's `learning_rate`."""
    return Suited(config.adapter.traits.learning_rate, config.method_name)


def _accumulation(config: RunConfig, _: KnownRows | None) -> Suited | None:
    """Keep a step below 32 rows: LoRA loses more than full fine-tuning in larger ones.

    Source: Schulman et al. 2025, "LoRA Without Regret", batch size effects (doi:10.64434/tml.20250929).
    """
    rows = config.training.per_device_train_batch_size
    default = type(config.training).model_fields["gradient_accumulation_steps"].default
    if rows * default < _LARGE_BATCH:
        return None
    return Suited(next((steps for steps in (2, 1) if rows * steps < _LARGE_BATCH), 1), f"batches of {rows}")


def _warmup(config: RunConfig, rows: KnownRows | None) -> Suited | None:
    """Warm up over a tenth of a short run: 3% of it would be a step or two.

    Source: transformers' alignment handbook warms up over 10%, QLoRA (arXiv:2305.14314) over 3% of 10,000 steps.
    """
    steps = planned_steps(config, rows)
    return (
        Suited(0.1, f"{steps:,} step{'' if steps == 1 else 's'}") if steps is not None and steps < _SHORT_RUN else None
    )


def _patience(config: RunConfig, _: KnownRows | None) -> Suited | None:
    """Stop once three evaluations in a row brought no lower held-out loss, and keep the best checkpoint.

    Not for full fine-tuning, whose checkpoints are several times the model. Source: Prechelt 1998, "Early stopping, but
    when?" (doi:10.1007/3-540-49430-8_3), its criterion UP with three strips.
    """
    if config.dataset.eval_fraction == 0 or config.adapter.traits.trains_all:
        return None
    return Suited(_PATIENCE, "held-out rows")


RULES = (
    Rule("training.learning_rate", _learning_rate),
    Rule("training.gradient_accumulation_steps", _accumulation),
    Rule("training.warmup_steps", _warmup),
    Rule("training.early_stopping_patience", _patience),
)
SETTINGS = tuple(rule.setting for rule in RULES)


def planned_steps(config: RunConfig, rows: KnownRows | None) -> int | None:
    """Return how many optimizer steps a run on one device takes, about; None while it depends on unknown rows."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    if rows is None or training.packing:
        return None
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return max(1, round(rows.count * training.num_train_epochs / per_step))


def suited_settings(config: RunConfig, rows: KnownRows | None = None) -> dict[str, Suited]:
    """Return what the rules choose, by setting; each rule reads what those before it chose for settings that were not given."""
    chosen: dict[str, Suited] = {}
    for rule in RULES:
        section, _, name = rule.setting.partition(".")
        found = rule.choose(config, rows)
        default = type(getattr(config, section)).model_fields[name].default
        chosen[rule.setting] = found or Suited(default, "")
        if not is_given(config, rule.setting):
            config = _with(config, {rule.setting: chosen[rule.setting].value})
    return chosen


def with_suited_defaults(config: RunConfig, rows: KnownRows | None = None) -> RunConfig:
    """Give settings that were not given the defaults that suit the rest."""
    chosen = suited_settings(config, rows)
    return _with(config, {name: suited.value for name, suited in chosen.items() if not is_given(config, name)})


def is_given(config: RunConfig, setting: str) -> bool:
    """Return whether a configuration was read with this setting in it."""
    section, _, name = setting.partition(".")
    return section in config.model_fields_set and name in getattr(config, section).model_fields_set


def _with(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Change settings, which count as not given all the same: a rule after this one may still read which were."""
    sections: dict[str, dict[str, Any]] = {}
    for setting, value in values.items():
        section, _, name = setting.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {}
    for section, settings in sections.items():
        given = getattr(config, section)
        changed[section] = type(given).model_construct(given.model_fields_set, **{**dict(given), **settings})
    copy = config.model_copy(update=changed)
    return type(config).model_construct(config.model_fields_set, **dict(copy))

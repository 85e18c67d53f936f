"""Defaults that depend on other settings or on the rows: each a rule with its source, for settings that were not given.

A saved configuration has the values, so a later rule never changes an old run.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loratory.engine.config.methods.registry import DEFAULT_METHOD, METHODS
from loratory.engine.config.objectives import ROW_KINDS, RowKind, objective_of, objectives_for
from loratory.engine.config.run import RunConfig, by_section, field_of

_LARGE_BATCH = 32  # rows a step
_SHORT_RUN = 300  # optimizer steps
HIGH_RATE_FACTOR = 20  # a learning rate beyond so many times the usual one is rarely meant
_PATIENCE = 3  # of about ten evaluations
_LENGTH_MULTIPLE = 16  # tokens
_SHORTEST = 128  # tokens


@dataclass(frozen=True)
class DatasetKind:
    """What is known of a dataset as soon as its first rows were read."""

    kind: RowKind = field(default="answers", kw_only=True)


@dataclass(frozen=True)
class DatasetStats(DatasetKind):
    """What is known of the sequences of a dataset once they are counted."""

    count: int  # to train on
    longest: int  # tokens, of those held out as well

    @property
    def needed_max_length(self) -> int:
        """The smallest `max_length`, in steps of 16 tokens, that cuts nothing."""
        return -(-self.longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


@dataclass(frozen=True)
class DerivedDefault:
    """A default that was chosen for a configuration."""

    value: Any
    basis: str  # what it is suited to, in words; empty for the default of all others
    awaits_rows: bool = False  # another one may suit once the rows are counted


def _objective(_: RunConfig, rows: DatasetKind | None) -> DerivedDefault | None:
    """Take the objective that learns from such rows: TRL has a trainer for each kind of rows, and DPO's is the usual for pairs."""
    if rows is None:
        return DerivedDefault(field_of("training.objective").default, "", awaits_rows=True)
    objective = objectives_for(rows.kind)[0]
    return DerivedDefault(objective.name, ROW_KINDS[rows.kind].content) if not objective.learns_answers else None


def _beta(config: RunConfig, _: DatasetKind | None) -> DerivedDefault | None:
    """Leave the reference out where rewards are learned from, as TRL's `GRPOConfig` does: it costs a pass of the base."""
    return DerivedDefault(0.0, "grpo") if objective_of(config).samples_answers else None


def usual_learning_rate(config: RunConfig) -> float:
    """Return the learning rate of the method, and a twentieth of it for other objectives than supervised fine-tuning."""
    return config.adapter.traits.learning_rate * objective_of(config).rate


def objective_and_method(config: RunConfig) -> str:
    """Return what the usual learning rate depends on, such as `dpo with LoRA`."""
    is_lower = objective_of(config).rate < 1
    return f"{config.training.objective} with {config.method_name}" if is_lower else config.method_name


def learning_rate_factor(config: RunConfig) -> float:
    """Return how many times the usual one the learning rate is; above `HIGH_RATE_FACTOR` it is rarely meant."""
    return config.training.learning_rate / usual_learning_rate(config)


def _learning_rate(config: RunConfig, _: DatasetKind | None) -> DerivedDefault | None:
    """By method, and a twentieth of that for preferences and rewards; the sources are with each method's `learning_rate`."""
    return DerivedDefault(usual_learning_rate(config), objective_and_method(config))


def _accumulation(config: RunConfig, _: DatasetKind | None) -> DerivedDefault | None:
    """Keep a step below 32 rows: LoRA loses more than full fine-tuning in larger ones.

    Source: Schulman et al. 2025, "LoRA Without Regret", batch size effects (doi:10.64434/tml.20250929).
    """
    rows = config.training.per_device_train_batch_size
    default = field_of("training.gradient_accumulation_steps").default
    if rows * default < _LARGE_BATCH:
        return None
    return DerivedDefault(next((steps for steps in (2, 1) if rows * steps < _LARGE_BATCH), 1), f"batches of {rows}")


def _warmup(config: RunConfig, rows: DatasetKind | None) -> DerivedDefault | None:
    """Warm up over a tenth of a short run: 3% of it would be a step or two.

    Source: transformers' alignment handbook warms up over 10%, QLoRA (arXiv:2305.14314) over 3% of 10,000 steps.
    """
    steps = planned_steps(config, rows)
    if steps is None:
        default, awaits_rows = field_of("training.warmup_steps").default, not isinstance(rows, DatasetStats)
        return DerivedDefault(default, "", awaits_rows=awaits_rows)
    return DerivedDefault(0.1, f"{steps:,} step{'' if steps == 1 else 's'}") if steps < _SHORT_RUN else None


def _max_length(config: RunConfig, rows: DatasetKind | None) -> DerivedDefault | None:
    """Allow no more than the longest row needs, up to the default: nothing is cut, and memory is estimated for what can come.

    Longer rows keep the default, which is TRL's (`SFTConfig.max_length`): memory grows with it, and the page shows how many are
    cut. Packed rows fill it, however short they are.
    """
    default = field_of("training.max_length").default
    if config.training.packing:
        return None
    if not isinstance(rows, DatasetStats):
        return DerivedDefault(default, "", awaits_rows=True)
    virtual = config.adapter.traits.count_virtual_tokens(config.adapter)  # as many would leave no room
    length = max(rows.needed_max_length, _SHORTEST, virtual + _LENGTH_MULTIPLE)
    return DerivedDefault(length, f"the longest row, {rows.longest:,} tokens") if length <= default else None


def _patience(config: RunConfig, _: DatasetKind | None) -> DerivedDefault | None:
    """Stop once three evaluations in a row brought no lower held-out loss, and keep the best checkpoint.

    Not for full fine-tuning, whose checkpoints are several times the model. Source: Prechelt 1998, "Early stopping, but
    when?" (doi:10.1007/3-540-49430-8_3), its criterion UP with three strips.
    """
    if config.dataset.eval_fraction == 0 or config.adapter.traits.trains_all:
        return None
    return DerivedDefault(_PATIENCE, "held-out rows")


# By setting; a rule returns None where the field's own default is right.
RULES: Mapping[str, Callable[[RunConfig, DatasetKind | None], DerivedDefault | None]] = {
    "training.objective": _objective,
    "training.beta": _beta,
    "training.learning_rate": _learning_rate,
    "training.gradient_accumulation_steps": _accumulation,
    "training.warmup_steps": _warmup,
    "training.max_length": _max_length,
    "training.early_stopping_patience": _patience,
}
SETTINGS = tuple(RULES)


def planned_steps(config: RunConfig, rows: DatasetKind | None) -> int | None:
    """Return how many optimizer steps a run on one device takes, about; None while it depends on unknown rows."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    if not isinstance(rows, DatasetStats) or training.packing:
        return None
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    batches = max(1, round(rows.count * training.num_train_epochs / per_step))
    return batches * objective_of(config).steps_per_batch(training)


def derive_defaults(config: RunConfig, rows: DatasetKind | None = None) -> dict[str, DerivedDefault]:
    """Return what the rules choose, by setting; each rule reads what those before it chose for settings that were not given."""
    settings: dict[str, DerivedDefault] = {}
    for setting, choose in RULES.items():
        settings[setting] = choose(config, rows) or DerivedDefault(field_of(setting).default, "")
        if not is_given(config, setting):
            config = _with(config, {setting: settings[setting].value})
    return settings


def apply_derived_defaults(config: RunConfig, rows: DatasetKind | None = None) -> RunConfig:
    """Give settings that were not given the defaults that suit the rest."""
    settings = derive_defaults(config, rows)
    return _with(config, {name: default.value for name, default in settings.items() if not is_given(config, name)})


def open_settings(config: RunConfig) -> tuple[str, ...]:
    """Return the settings that were not given, and have the defaults that the rules chose."""
    return tuple(setting for setting in SETTINGS if not is_given(config, setting))


def given_settings(config: RunConfig, open_ones: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return plain values without the defaults that the rules chose; `open_ones` names them for a saved configuration."""
    values: dict[str, dict[str, Any]] = config.model_dump(mode="json")
    for setting in open_settings(config) if open_ones is None else open_ones:
        section, _, name = setting.partition(".")
        values.get(section, {}).pop(name, None)
    return values


def changed_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings that differ from what leaving them out gives, and all that have derived defaults."""
    defaults = RunConfig.model_validate({"model": {"id": "-"}, "dataset": {"source": "-"}}).model_dump(mode="json")
    defaults["adapter"] |= METHODS.get(settings["adapter"].get("method", ""), DEFAULT_METHOD).defaults
    changes: dict[str, dict[str, Any]] = {}
    for section, values in settings.items():
        for name, value in values.items():
            if f"{section}.{name}" in SETTINGS or value != defaults[section][name]:
                changes.setdefault(section, {})[name] = value
    return changes


def is_given(config: RunConfig, setting: str) -> bool:
    """Return whether a configuration was read with this setting in it."""
    section, _, name = setting.partition(".")
    return section in config.model_fields_set and name in getattr(config, section).model_fields_set


def _with(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Change settings, which count as not given all the same: a rule after this one may still read which were."""
    updates = {}
    for section, settings in by_section(values).items():
        before = getattr(config, section)
        updates[section] = type(before).model_construct(before.model_fields_set, **{**dict(before), **settings})
    copy = config.model_copy(update=updates)
    return type(config).model_construct(config.model_fields_set, **dict(copy))

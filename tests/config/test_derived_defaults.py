"""Defaults that follow the rest: only for what was not given, the same from form, command and preset."""

import pytest

from loratory.engine.config.derived_defaults import (
    DatasetKind,
    DatasetStats,
    apply_derived_defaults,
    derive_defaults,
    given_settings,
    learning_rate_factor,
)
from loratory.engine.config.load import config_from_mapping, config_to_yaml, mapping_from_yaml, with_overrides
from loratory.engine.config.methods.registry import METHODS

ROWS = DatasetStats(count=120, longest=138)


def config_of(*overrides):
    return config_from_mapping(with_overrides({"model": {"id": "m"}, "dataset": {"source": "d"}}, overrides))


@pytest.mark.parametrize("method", METHODS)
def test_the_learning_rate_follows_the_method_and_never_replaces_a_given_one(method):
    config = config_of(f"adapter.method={method}")
    settings = config_of(f"adapter.method={method}", "training.learning_rate=0.0003")

    assert config.training.learning_rate == METHODS[method].learning_rate
    assert settings.training.learning_rate == 0.0003


def test_a_default_that_suits_all_stays_the_default_of_the_field():
    training = config_of("dataset.eval_fraction=0").training

    assert (training.learning_rate, training.gradient_accumulation_steps, training.warmup_steps) == (2e-4, 4, 0.03)
    assert training.early_stopping_patience is None


@pytest.mark.parametrize(
    ("batch", "steps"), [(1, 4), (2, 4), (7, 4), (8, 2), (15, 2), (16, 1), (31, 1), (32, 1), (64, 1)]
)
def test_accumulation_keeps_a_step_below_32_rows_where_the_batch_does(batch, steps):
    training = config_of(f"training.per_device_train_batch_size={batch}").training

    assert training.gradient_accumulation_steps == steps
    assert batch * steps < 32 or batch >= 32
    assert config_of("training.gradient_accumulation_steps=32", f"training.per_device_train_batch_size={batch}").training.gradient_accumulation_steps == 32  # fmt: skip


def test_a_short_run_warms_up_over_a_tenth_of_it():
    assert config_of("training.max_steps=40").training.warmup_steps == 0.1
    assert config_of("training.max_steps=4000").training.warmup_steps == 0.03
    assert derive_defaults(config_of(), ROWS)["training.warmup_steps"].basis == "45 steps"
    assert derive_defaults(config_of(), DatasetStats(100_000, 138))["training.warmup_steps"].basis == ""


@pytest.mark.parametrize(
    ("longest", "length"), [(5, 128), (138, 144), (144, 144), (1000, 1008), (1024, 1024), (1025, 1024), (9000, 1024)]
)
def test_max_length_fits_the_longest_row_up_to_the_default(longest, length):
    rows = DatasetStats(120, longest)

    assert apply_derived_defaults(config_of(), rows).training.max_length == length
    assert apply_derived_defaults(config_of("training.packing=true"), rows).training.max_length == 1024
    assert apply_derived_defaults(config_of("training.max_length=64"), rows).training.max_length == 64


def test_max_length_leaves_room_for_virtual_tokens():
    virtual = ["adapter.method=prefix_tuning", "adapter.num_virtual_tokens=200"]

    assert apply_derived_defaults(config_of(*virtual), ROWS).training.max_length == 216


def test_what_follows_the_rows_waits_for_them_and_nothing_else_does():
    def waits(*overrides, rows=None):
        result = derive_defaults(config_of(*overrides), rows).items()
        return [name.partition(".")[2] for name, default in result if default.awaits_rows]

    assert waits() == ["objective", "warmup_steps", "max_length"]
    assert waits("training.max_steps=40", "training.objective=sft") == ["objective", "max_length"]
    assert waits("training.packing=true") == ["objective", "warmup_steps"]
    assert waits(rows=ROWS) == []


def test_settings_without_suited_defaults_are_those_that_were_given():
    config = config_of("training.warmup_steps=5")
    settings = given_settings(config)

    assert settings["training"]["warmup_steps"] == 5
    assert not {"learning_rate", "max_length"} & settings["training"].keys()
    assert config_from_mapping(settings) == config


def test_early_stopping_needs_held_out_rows_and_an_adapter():
    assert config_of().training.early_stopping_patience == 3
    assert config_of("training.early_stopping_patience=null").training.early_stopping_patience is None
    assert config_of("adapter.method=none").training.early_stopping_patience is None


def test_what_is_saved_has_the_values_and_no_later_rule_changes_it():
    config = config_of("adapter.method=ia3", "training.max_steps=40")
    stored_config = mapping_from_yaml(config_to_yaml(config))

    assert stored_config["training"]["learning_rate"] == METHODS["ia3"].learning_rate
    assert config_from_mapping(stored_config) == config
    other = {**stored_config, "adapter": {**stored_config["adapter"], "method": "lora"}}
    assert config_from_mapping(other).training == config.training


def test_preferences_are_learned_at_a_twentieth_of_the_rate():
    def rate(*overrides):
        return config_of(*overrides).training.learning_rate

    assert rate("training.objective=dpo") == pytest.approx(rate() / 20)
    assert rate("training.objective=dpo", "training.learning_rate=3e-5") == 3e-5


def test_the_objective_follows_the_kind_of_rows_and_the_learning_rate_follows_it():
    pairs, ratings = (DatasetStats(120, 138, kind=kind) for kind in ("pairs", "ratings"))

    chosen = [
        apply_derived_defaults(config_of(), rows).training
        for rows in (None, ROWS, pairs, ratings, DatasetKind(kind="pairs"))
    ]

    assert [training.objective for training in chosen] == ["sft", "sft", "dpo", "kto", "dpo"]
    assert chosen[2].learning_rate == pytest.approx(2e-4 * 0.05)
    assert apply_derived_defaults(config_of("training.objective=orpo"), pairs).training.objective == "orpo"
    assert apply_derived_defaults(config_of("training.objective=sft"), pairs).training.objective == "sft"


@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        ((), 1),
        (("training.learning_rate=1",), 5000),
        (("adapter.method=ia3", "training.learning_rate=0.05"), 10),
        (("training.objective=dpo", "training.learning_rate=2e-4"), 20),
        (("training.learning_rate=2e-6",), 0.01),
    ],
)
def test_a_learning_rate_is_compared_with_that_of_its_method_and_objective(overrides, factor):
    assert learning_rate_factor(config_of(*overrides)) == pytest.approx(factor)

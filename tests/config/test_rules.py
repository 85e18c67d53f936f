"""When a run measures and saves."""

import pytest

from loratory.engine.config.optimizations import OPTIMIZATIONS, VARIABLE, is_wanted
from loratory.engine.config.rules import Cadence
from loratory.engine.config.training import TrainingConfig
from loratory.engine.errors import ConfigError


def at(predicate, total):
    return [step for step in range(1, total + 1) if predicate(step)]


def test_by_default_about_ten_measurements_and_five_checkpoints():
    cadence = Cadence.from_settings(TrainingConfig(), 100, measures=True)

    assert at(cadence.measures_at, 100) == list(range(10, 101, 10))
    assert at(cadence.saves_at, 100) == [20, 40, 60, 80, 100]


@pytest.mark.parametrize("total", [1, 2, 7, 39, 1003])
def test_the_last_step_is_always_measured_and_saved(total):
    cadence = Cadence.from_settings(TrainingConfig(), total, measures=True)

    assert cadence.measures_at(total)
    assert cadence.saves_at(total)
    assert len(at(cadence.measures_at, total)) <= 11
    assert len(at(cadence.saves_at, total)) <= 6


@pytest.mark.parametrize("total", [39, 95, 101, 312, 1003])
@pytest.mark.parametrize("eval_steps", [None, 30])
def test_a_checkpoint_comes_with_a_measurement_where_nothing_else_was_set(total, eval_steps):
    cadence = Cadence.from_settings(TrainingConfig(eval_steps=eval_steps), total, measures=True)

    assert set(at(cadence.saves_at, total)) <= set(at(cadence.measures_at, total))
    assert len(at(cadence.saves_at, total)) >= min(2, total // 30)


def test_settings_come_first():
    cadence = Cadence.from_settings(TrainingConfig(eval_steps=7, save_steps=4), 10, measures=True)

    assert at(cadence.measures_at, 10) == [7, 10]
    assert at(cadence.saves_at, 10) == [4, 8, 10]


def test_nothing_is_measured_where_nothing_is_held_out():
    assert at(Cadence.from_settings(TrainingConfig(eval_steps=1), 10, measures=False).measures_at, 10) == []


@pytest.mark.parametrize("value", ["", " ", ",", "fused_norms", " fused_norms , varlen_attention,"])
def test_what_the_variable_names_is_left_out(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)

    assert [name for name in OPTIMIZATIONS if not is_wanted(name)] == sorted(
        (name.strip() for name in value.split(",") if name.strip()), key=list(OPTIMIZATIONS).index
    )


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fused_norms,fussed_loss")

    with pytest.raises(ConfigError, match=r"fussed_loss is not one of unmasked_rows, .*fused_loss"):
        is_wanted("fused_norms")

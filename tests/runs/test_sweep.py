import itertools

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import ConfigError
from loratory.engine.runs.sweep import keep_alpha_ratio, sweep_configs

BASE = {"model": {"id": "some/model"}, "dataset": {"source": "data.jsonl"}, "run": {"name": "Evening"}}


def test_every_combination_is_a_run_of_its_own_and_named_by_it():
    configs = sweep_configs(BASE, ["training.learning_rate=1e-4, 2e-4", "adapter.r=8,16,32"])

    assert [(config.training.learning_rate, config.adapter.r) for config in configs] == [
        (1e-4, 8), (1e-4, 16), (1e-4, 32), (2e-4, 8), (2e-4, 16), (2e-4, 32),
    ]  # fmt: skip
    assert configs[0].run.name == "Evening: learning_rate 1e-4, r 8"
    assert len({config.run.name for config in configs}) == 6


def test_values_may_be_lists_and_words():
    configs = sweep_configs(BASE, ["adapter.target_modules=all-linear,[q_proj, v_proj]", "model.quantization=none,nf4"])

    assert [config.adapter.target_modules for config in configs[::2]] == ["all-linear", ("q_proj", "v_proj")]
    assert [config.model.quantization for config in configs[:2]] == ["none", "nf4"]


def test_text_is_taken_as_it_was_typed():
    configs = sweep_configs(BASE, ["model.revision=1234567,12e4567, 0123,no,2024-12-05,2024-13-45"])

    revisions = ["1234567", "12e4567", "0123", "no", "2024-12-05", "2024-13-45"]
    assert [config.model.revision for config in configs] == revisions
    assert configs[3].run.name == "Evening: revision no"


def test_a_value_on_several_lines_makes_a_name_on_one():
    (config,) = sweep_configs(BASE, ["adapter.target_modules=[q_proj,\n  v_proj]"])

    assert config.adapter.target_modules == ("q_proj", "v_proj")
    assert config.run.name == "Evening: target_modules [q_proj, v_proj]"


@pytest.mark.parametrize(
    ("values", "shown_value"),
    [
        ("8,8", "8 is given twice"),
        ("8,16,8", "8 is given twice"),
        ("8,0x8", "0x8 is the same value as 8"),
        ("8, 8.0", "8.0 is the same value as 8"),
        ("'8',8", "8 is the same value as '8'"),
    ],
)
def test_a_repeated_value_is_refused_once_however_it_is_written(values, shown_value):
    with pytest.raises(ConfigError) as error_info:
        sweep_configs(BASE, [f"adapter.r={values}", "training.learning_rate=1e-4,2e-4"])

    assert error_info.value.problems == (("adapter.r", f"{shown_value}; leave one of them out."),)


def test_repeated_values_of_all_axes_are_reported_together():
    with pytest.raises(ConfigError) as error_info:
        sweep_configs(BASE, ["adapter.r=8,0x8", "training.learning_rate=1e-4,0.0001,0"])

    assert sorted(problem.field for problem in error_info.value.problems) == [
        "adapter.r", "training.learning_rate", "training.learning_rate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "axis",
    ["adapter.r", "r=8,16", "adapter.r=", "adapter.r=[", "=1", "adapter.r=8,null", f"adapter.r={'[' * 3000}"],
    ids=lambda axis: axis[:20],
)
def test_an_axis_of_another_form_is_refused(axis):
    with pytest.raises(ConfigError, match="is not of the form"):
        sweep_configs(BASE, [axis])


def test_a_value_that_yaml_cannot_make_is_refused_as_what_was_typed():
    with pytest.raises(ConfigError, match="'2024-13-45' is not a whole number"):
        sweep_configs(BASE, ["training.seed=2024-13-45,1"])


def test_aliases_in_a_value_are_refused_before_they_are_written_out():
    bomb = "&a [x,x,x], " + ", ".join(
        f"&{name} [*{before},*{before}]" for before, name in itertools.pairwise("abcdefghi")
    )

    with pytest.raises(ConfigError, match=r"anchors and aliases .* are not supported"):
        sweep_configs(BASE, [f"training.learning_rate=[{bomb}]"])


def test_all_problems_of_all_combinations_are_reported_once():
    with pytest.raises(ConfigError) as error_info:
        sweep_configs(BASE, ["adapter.r=0,8", "training.learning_rate=-1,1e-4"])
    assert sorted(problem.field for problem in error_info.value.problems) == ["adapter.r", "training.learning_rate"]


def test_a_setting_twice_and_a_flood_are_refused():
    with pytest.raises(ConfigError, match="swept over twice"):
        sweep_configs(BASE, ["adapter.r=8", "adapter.r=16"])
    numbers = ",".join(str(number) for number in range(1, 30))
    with pytest.raises(ConfigError, match="841 combinations"):
        sweep_configs(BASE, [f"adapter.r={numbers}", f"training.seed={numbers}"])


def test_alpha_follows_a_swept_rank_where_that_is_wanted():
    base = config_from_mapping({**BASE, "adapter": {"r": 16, "lora_alpha": 32}})
    configs = keep_alpha_ratio(sweep_configs(base.model_dump(mode="json"), ["adapter.r=4,16,64"]), base)

    assert [(config.adapter.r, config.adapter.lora_alpha) for config in configs] == [(4, 8), (16, 32), (64, 128)]

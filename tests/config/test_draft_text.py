"""A draft as text: only what differs from the defaults, a command that means the same, and problems by line."""

import shlex

import pytest

from loratory.engine.config.derived_defaults import changed_settings, given_settings
from loratory.engine.config.load import (
    command_of,
    config_from_mapping,
    config_to_yaml,
    locate_problems,
    mapping_from_yaml,
    with_stand_ins,
)
from loratory.engine.config.presets import list_presets
from loratory.engine.errors import ConfigError
from loratory.engine.interface.names import load_config

CHOSEN: dict[str, dict] = {"model": {"id": "some/model"}, "dataset": {"source": "sample:loratory-faq"}}
AWKWARD = {
    "model": {"id": "it's a \"path\" & more/$HOME", "revision": "no"},
    "adapter": {"method": "adalora", "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "init_r": 24},
    "dataset": {
        "source": "[odd] name.jsonl", "column_map": {"output": "answer: 'x'"}, "mix": {"&b=c.jsonl": 0.5}, "max_samples": 7,
    },
    "training": {"learning_rate": 1e-05, "max_steps": 3, "report_to": ["trackio"], "save_total_limit": 2},
    "run": {"name": " ünder 'quotes' 🙂 # 1e5 ", "devices": [0, 1]},
}  # fmt: skip
SETTINGS = [CHOSEN, AWKWARD, *(preset.mapping() for preset in list_presets())]


def run_command(command: str, home):
    """Return the configuration that the command would train."""
    program, verb, *arguments = shlex.split(command)
    assert (program, verb, set(arguments[::2])) == ("loratory", "train", {"--set"})
    return load_config("", arguments[1::2], home)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_command_and_the_yaml_of_a_draft_give_its_configuration(settings, home):
    config = config_from_mapping(settings)
    changes = changed_settings(given_settings(config))

    assert run_command(command_of(changes), home) == config
    assert config_from_mapping(mapping_from_yaml(config_to_yaml(changes))) == config


def test_only_what_differs_from_the_defaults_is_written():
    settings: dict[str, dict] = {
        **CHOSEN,
        "training": {"learning_rate": 2e-4, "seed": 42, "max_steps": 9},
        "run": {"name": ""},
    }

    changes = changed_settings({"adapter": {"method": "lora", "r": 16}, **settings})

    assert changes == {**CHOSEN, "training": {"learning_rate": 2e-4, "max_steps": 9}}  # the rate has a derived default


def test_a_methods_own_defaults_are_left_out():
    assert changed_settings({"adapter": {"method": "vera", "r": 256}}) == {"adapter": {"method": "vera"}}
    assert changed_settings({"adapter": {"method": "vera", "r": 16}}) == {"adapter": {"method": "vera", "r": 16}}


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("model:\n  id: a/b\ntraining:\n  learning_rate: 7\n", [(4, "training.learning_rate: 7 is out of range")]),
        ("model:\n  id: a/b\n\ntraining: 5\n", [(4, "training: 5 is not a group")]),
        ("nonsense: 1\nadapter:\n  r: x\n", [(1, "nonsense: there is no such setting"), (3, "adapter.r: 'x' is not")]),
        ("model:\n  id: a/b\n  id: c/d\n", [(3, "key 'id' is given twice")]),
        ("model:\n  id: [a\n", [(3, "it is not readable as YAML")]),
        ("model: &base\n  id: a/b\ndataset: *base\n", [(1, "anchors and aliases")]),
        ("run:\n  name: x\ndataset: *base\n", [(3, "undefined alias")]),
        ("- a\n- b\n", [(1, "it holds no settings")]),
        ("# nothing\n", [(1, "it holds no settings")]),
        ("a" * 200_001, [(1, "200,001 characters")]),
        ("adapter:\n  method: none\n  warm_start: x\n", [(3, "adapter.warm_start: ")]),
    ],
)
def test_each_problem_has_the_line_of_its_setting(text, problems):
    with pytest.raises(ConfigError) as error_info:
        config_from_mapping(with_stand_ins(mapping_from_yaml(text)))

    line_problems = locate_problems(text, error_info.value)

    assert [line for line, _ in line_problems] == [line for line, _ in problems]
    for (_, message), (_, expected) in zip(line_problems, problems, strict=True):
        assert expected in message

"""Every preset that ships: loads, survives the round trip, and says for whom it is."""

import pytest

from engine.config.load import config_from_yaml, config_to_yaml
from engine.config.presets import find_preset, list_presets
from engine.errors import ConfigError

NAMES = [preset.name for preset in list_presets()]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_the_round_trip(name):
    config = find_preset(name).load()

    assert config_from_yaml(config_to_yaml(config)) == config


def test_the_presets_that_the_readme_names_are_there():
    assert {"quickstart-cpu", "quickstart-cpu-qlora", "llama2-7b-qlora"} <= set(NAMES)


def test_the_classic_qlora_is_the_published_one():
    config = find_preset("llama2-7b-qlora").load()

    assert (config.adapter.r, config.adapter.lora_alpha, config.adapter.lora_dropout) == (16, 32, 0.05)
    assert config.adapter.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (config.model.quantization, config.model.double_quant, config.model.compute_dtype) == (
        "nf4",
        True,
        "bfloat16",
    )
    training = config.training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 8)
    assert (training.gradient_checkpointing, training.optim) == (True, "paged_adamw_32bit")
    assert (training.learning_rate, training.num_train_epochs, training.max_length) == (2e-4, 1, 2048)
    assert config.dataset.source == "timdettmers/openassistant-guanaco"


@pytest.mark.parametrize("name", ["nothing", "../pyproject", "", "-x", "a" * 400, "quickstart-cpu\n"])
def test_an_unknown_preset_is_answered_with_those_that_exist(name):
    with pytest.raises(ConfigError, match="quickstart-cpu"):
        find_preset(name)

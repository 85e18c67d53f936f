"""Every preset that ships: loads, survives the round trip, and says for whom it is."""

import re

import pytest

from loratory.engine.config.load import config_from_mapping, config_to_yaml, mapping_from_yaml, with_overrides
from loratory.engine.config.presets import Preset, find_preset, list_presets
from loratory.engine.errors import ConfigError
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import MemoryEstimate, estimate_memory
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
NAMES = [preset.name for preset in list_presets()]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_the_round_trip(name):
    config = find_preset(name).load()

    assert config_from_mapping(mapping_from_yaml(config_to_yaml(config))) == config


def said_of(preset: Preset, field: str) -> str:
    """Return the comment next to a setting."""
    return re.search(rf"^  {field}: .*?# (.+)$", preset.path.read_text(encoding="utf-8"), re.MULTILINE)[1]


def estimate_preset(preset: Preset, *overrides: str) -> MemoryEstimate:
    config = config_from_mapping(with_overrides(preset.mapping(), overrides))
    size = int(preset.memory_gib * GIB)
    device = Device("cuda", 0, preset.device, size, size, has_fast_bfloat16=True)
    return estimate_memory(inventory_of(find_in_catalog(config.model.id).config), config, device)


def test_what_double_quantization_is_said_to_save_is_what_the_estimate_says():
    preset = find_preset("llama2-7b-qlora")
    with_it, without = estimate_preset(preset), estimate_preset(preset, "model.double_quant=false")

    saved = without.components_bytes["Weights (nf4)"] - with_it.components_bytes["Weights (nf4)"]

    assert f"about {saved / GIB:.2f} GiB here" in said_of(preset, "double_quant")


def test_half_the_batch_and_twice_the_accumulation_is_the_same_step_in_less_memory():
    preset = find_preset("llama2-7b-qlora")
    training = preset.load().training
    batch, batches = training.per_device_train_batch_size, training.gradient_accumulation_steps
    half_batch = (
        f"training.per_device_train_batch_size={batch // 2}",
        f"training.gradient_accumulation_steps={batches * 2}",
    )

    text = said_of(preset, "gradient_accumulation_steps")

    assert text.startswith(f"{batch * batches} rows a step; halve the batch and double this for less memory")
    assert estimate_preset(preset, *half_batch).needed_bytes < estimate_preset(preset).needed_bytes


def test_the_batch_said_to_fit_without_checkpointing_is_the_largest():
    preset = find_preset("llama3.1-8b-lora-80gb")
    match = int(re.search(r"a batch of (\d+)", said_of(preset, "gradient_checkpointing"))[1])

    def verdict(batch: int) -> str:
        sizes = f"training.per_device_train_batch_size={batch}"
        return estimate_preset(preset, "training.gradient_checkpointing=false", sizes).verdict

    assert (verdict(match), verdict(match + 1)) == ("fits", "does_not_fit")


@pytest.mark.parametrize("name", ["nothing", "../pyproject", "", "-x", "a" * 400, "quickstart-cpu\n"])
def test_an_unknown_preset_is_answered_with_those_that_exist(name):
    with pytest.raises(ConfigError, match="quickstart-cpu"):
        find_preset(name)

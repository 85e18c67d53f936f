"""Reading configurations: every problem at once, in plain words; and writing them back."""

import pytest

from loratory.engine.config.constraints import count_processes
from loratory.engine.config.load import (
    config_from_mapping,
    config_to_yaml,
    mapping_from_yaml,
    setting_names,
    with_overrides,
)
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError

MINIMAL = {"model": {"id": "smollm2-135m-instruct"}, "dataset": {"source": "sample:loratory-faq"}}


def problems_of(*overrides: str, base: dict = MINIMAL) -> dict[str, str]:
    with pytest.raises(ConfigError) as error_info:
        config_from_mapping(with_overrides(base, overrides))
    return dict(error_info.value.problems)


def nested_aliases(levels: int) -> str:
    """Return lists of nine aliases of the list before: 9 ** levels values when they are written out."""
    lists = ("[" + ",".join([f"*a{level - 1}" if level else "x"] * 9) + "]" for level in range(levels))
    return ", ".join(f"&a{level} {text}" for level, text in enumerate(lists))


def test_two_lines_make_a_whole_configuration():
    config = config_from_mapping(MINIMAL)

    assert config.adapter.method == "lora"
    assert config.training.learning_rate == 2e-4


def test_five_mistakes_are_reported_together_by_field():
    mistakes = (
        "training.learning_rate=1e-4; rm",
        "adapter.r=1000000000",
        "training.per_device_train_batch_size=0",
        "model.quantization=nf5",
        "training.max_steps=2147483648",
    )

    problems = problems_of(*mistakes)

    assert set(problems) == {mistake.partition("=")[0] for mistake in mistakes}
    assert "at most 1,024" in problems["adapter.r"]
    assert "'nf4'" in problems["model.quantization"]


def test_pairs_are_checked_although_another_field_is_broken():
    problems = problems_of(
        "adapter.method=prefix_tuning", "training.gradient_checkpointing=true", "training.learning_rate=-1"
    )

    assert set(problems) == {"training.learning_rate", "training.gradient_checkpointing"}


def test_a_pair_is_not_judged_by_a_field_that_is_itself_broken():
    problems = problems_of("adapter.method=prefix_tunin", "training.gradient_checkpointing=true")

    assert set(problems) == {"adapter.method"}


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        ((), 1),
        (("run.launcher=accelerate", "run.devices=[0, 1, 5]"), 3),
        (("run.device_map=balanced", "run.devices=[0, 1]"), 1),
        (("run.where=slurm", "slurm.gpus=4", "slurm.nodes=2"), 8),
        (("run.where=slurm", "slurm.gpus=4", "slurm.nodes=2", "run.devices=cpu"), 2),
        (("run.where=jobs",), 1),
    ],
)
def test_processes_of_a_run_are_one_for_each_of_its_gpus(overrides, processes):
    assert count_processes(config_from_mapping(with_overrides(MINIMAL, overrides))) == processes


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ("run.devices=[0, 1]", None, ""),
        ("run.devices=cpu", None, ""),  # a launcher by hand may start several
        ("run.devices=auto", "run.fsdp", "name two or more there"),
        ("run.devices=[1]", "run.fsdp", "name two or more there"),
        ("run.launcher=local", "run.fsdp", "set run.launcher to accelerate"),
        ("run.where=jobs", "run.fsdp", "ask for two or more"),
        ("run.device_map=balanced", "run.fsdp", "set one of the two to none"),
        ("adapter.method=ia3", "run.fsdp", "IA3 cannot be sharded"),
        ("model.quantization=int8", "run.fsdp", "set quantization to nf4 or none"),
        ("model.quantization=nf4", None, ""),
        ("adapter.method=none", None, ""),
        ("training.objective=kto", "run.fsdp", "kto also passes answers behind other prompts"),
        ("training.optim=adafactor", "run.fsdp", "set optim to adamw_torch"),
    ],
)
def test_what_cannot_be_sharded_is_refused(changes, field, message):
    overrides = ("run.fsdp=full_shard", "run.launcher=accelerate", "run.devices=[0, 1]", changes)

    if field is None:
        assert config_from_mapping(with_overrides(MINIMAL, overrides)).run.fsdp == "full_shard"
    else:
        assert message in problems_of(*overrides)[field]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ("run.devices=auto", "run.device_map", "which is auto; name two or more"),
        ("run.devices=[1]", "run.device_map", "which names 1; name two or more"),
        ("run.launcher=accelerate", "run.launcher", "set the launcher to local"),
        ("training.optim=paged_adamw_8bit", "training.optim", "adamw_8bit is the nearest"),
    ],
)
def test_layers_are_spread_only_where_that_can_work(changes, field, message):
    problems = problems_of("run.device_map=balanced", "run.devices=[0, 1]", changes)

    assert list(problems) == [field]
    assert message in problems[field]


@pytest.mark.parametrize("value", [".nan", ".inf", "0", "-1e-4", "2"])
def test_learning_rates_that_cannot_train_are_refused(value):
    assert "training.learning_rate" in problems_of(f"training.learning_rate={value}")


def test_a_run_of_no_steps_is_refused_and_minus_one_leaves_it_to_the_epochs():
    assert problems_of("training.max_steps=0") == {
        "training.max_steps": "0 steps would train nothing; give 1 or more, or -1 to leave it to the epochs."
    }
    for steps in (-1, 1):
        assert config_from_mapping(with_overrides(MINIMAL, [f"training.max_steps={steps}"])).training.max_steps == steps


@pytest.mark.parametrize(
    ("wrong", "guess"),
    [
        ("model.quantisation", "; did you mean model.quantization?"),
        ("training.r", "; did you mean adapter.r?"),
        ("adapter.rank", "; did you mean adapter.r?"),  # by its title
        ("training.epochs", "; did you mean training.num_train_epochs?"),
        ("training.stepz", "."),  # nothing is close enough
    ],
)
def test_a_misspelt_setting_is_answered_with_the_nearest_one(wrong, guess):
    assert problems_of(f"{wrong}=1")[wrong] == f"there is no such setting{guess}"


def test_missing_sections_are_named():
    with pytest.raises(ConfigError) as error_info:
        config_from_mapping(mapping_from_yaml("training: {max_steps: 3}"))

    assert {problem.field for problem in error_info.value.problems} == {"model", "dataset"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object:os.system {}", "could not determine a constructor"),
        ("model: {id: a}\nmodel: {id: b}", "given twice"),
        ("- a\n- b", "holds no settings"),
        ("model: [", "not readable as YAML"),
        ("", "holds no settings"),
        (
            f"dataset: [{nested_aliases(9)}]",
            r"anchors and aliases \(&a0, \*a0\) are not supported; write the value out",
        ),
        ("model: &m {id: a}\ndataset: {<<: [*m, *m]}", "anchors and aliases"),
        (f"training: {{seed: {':'.join(['59'] * 9000)}}}", "line 1: a number of 26,999 characters"),
        (f"training: {{seed: {':'.join(['59'] * 9000)}.5}}", "a number of 27,001 characters"),
        ("a: 1\n" * 50_000, "it is 250,000 characters long"),
        ("".join(f"s{number}: 1\n" for number in range(9_000)), "there are 9,000 settings that do not exist"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_not_a_configuration_is_refused_with_a_message(text, message):
    with pytest.raises(ConfigError, match=message):
        config_from_mapping(mapping_from_yaml(text))


@pytest.mark.parametrize(
    ("typed", "model", "dataset"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
        (" huggingface.co/Qwen/Qwen3-0.6B/ ", "Qwen/Qwen3-0.6B", None),
        ("https://hf.co/openai-community/gpt2/tree/main?library=transformers#use", "openai-community/gpt2", None),
        ("https://huggingface.co/datasets/tatsu-lab/alpaca", None, "tatsu-lab/alpaca"),
        ("https://www.huggingface.co/datasets/imdb", None, "imdb"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/refs%2Fpr%2F2", None, None),
        ("https://huggingface.co/spaces/gradio/hello", None, None),
        ("https://huggingface.co.example.org/Qwen/Qwen3-0.6B", None, None),
        ("Qwen/Qwen3-0.6B", None, None),
    ],
)
def test_the_address_of_a_page_on_the_hub_means_the_model_or_dataset_of_that_page(typed, model, dataset):
    config = config_from_mapping({"model": {"id": typed}, "dataset": {"source": typed, "mix": {typed: 0.5}}})

    assert (config.model.id, config.dataset.source) == (model or typed, dataset or typed)
    assert config.dataset.mix == {dataset or typed: 0.5}


def test_a_name_has_one_line_and_never_turns_the_words_after_it():
    assert config_from_mapping({**MINIMAL, "run": {"name": "a\u202eb\u2067"}}).run.name == "ab"
    assert config_from_mapping({**MINIMAL, "run": {"name": "שלום 👩‍👩‍👧‍👦"}}).run.name == "שלום 👩‍👩‍👧‍👦"
    with pytest.raises(ConfigError, match="characters that are not allowed here"):
        config_from_mapping({**MINIMAL, "run": {"name": "a\nb"}})


def test_a_configuration_survives_the_round_trip_with_every_default_written_out():
    config = config_from_mapping(
        with_overrides(
            MINIMAL, ["adapter.target_modules=[q_proj, v_proj]", "run.devices=[0, 1]", "training.eval_steps=5"]
        )
    )

    text = config_to_yaml(config)

    assert config_from_mapping(mapping_from_yaml(text)) == config
    for name in setting_names():
        assert f"{name.rsplit('.', 1)[-1]}:" in text


def test_scientific_notation_is_a_number_with_or_without_a_point():
    values = mapping_from_yaml("model: {id: a}\ndataset: {source: b}\ntraining: {learning_rate: 3e-4}")

    assert config_from_mapping(values).training.learning_rate == 3e-4


def test_overrides_that_are_not_settings_are_refused_together():
    with pytest.raises(ConfigError) as error_info:
        with_overrides(MINIMAL, ["max_steps=3", "training.max_steps", "training..x=1"])

    assert len(error_info.value.problems) == 3


@pytest.mark.parametrize(
    "text",
    ["no", "1234567", "12e4567", "0123", "2024-12-05", "2024-13-45", "1:30", "try #3", "rank 8: again", "*", "!x"],
)
@pytest.mark.parametrize("name", ["run.name", "model.revision", "dataset.column_map.output"])
def test_text_settings_take_text_as_it_stands(name, text):
    section, field, *role = name.split(".")

    config = config_from_mapping(with_overrides(MINIMAL, [f"{name}={text}"]))

    value = getattr(getattr(config, section), field)
    assert (value[role[0]] if role else value) == text


def test_text_settings_can_be_quoted_and_emptied():
    values = ["model.revision=null", "run.name='null'", "dataset.subset=", "dataset.split= test ", "run.name="]

    config = config_from_mapping(with_overrides(MINIMAL, values[:-1]))

    assert (config.model.revision, config.dataset.subset, config.dataset.split) == (None, None, "test")
    assert config.run.name == "null"
    assert config_from_mapping(with_overrides(MINIMAL, values)).run.name == ""
    assert problems_of("run.name=[a, b]") == {"run.name": "['a', 'b'] is not text."}


@pytest.mark.parametrize(
    "text",
    [
        "2024-13-45",
        "[" * 3000,
        "9" * 5000,
        "!!bool x",
        "!!timestamp x",
        "!!int ''",
        "[",
        "59:" * 9000 + "1",
        f"0x{'f' * 9000}",
    ],
    ids=lambda text: text[:20],
)
def test_values_that_yaml_cannot_make_are_refused_as_what_was_typed(text):
    assert problems_of(f"training.seed={text}")["training.seed"].endswith("is not a whole number.")


@pytest.mark.parametrize("name", ["model.id", "adapter.target_modules", "training.seed"])
def test_nested_aliases_in_a_value_are_refused_before_they_are_written_out(name):
    message = "YAML anchors and aliases (&a0, *a0) are not supported; write the value out."

    assert problems_of(f"{name}=[{nested_aliases(12)}]") == {name: message}


def test_an_asterisk_and_an_ampersand_in_text_stay_text():
    config = config_from_mapping(with_overrides(MINIMAL, ["run.name=&b *a", "adapter.target_modules='.*(q|v)_proj'"]))

    assert (config.run.name, config.adapter.target_modules) == ("&b *a", ".*(q|v)_proj")


def test_a_value_without_end_is_shown_by_its_beginning():
    deep: list = ["x"]
    for _ in range(30):
        deep = [deep] * 9

    with pytest.raises(ConfigError) as error_info:
        config_from_mapping({**MINIMAL, "model": {"id": deep}})

    (problem,) = error_info.value.problems
    assert problem.message.startswith("[[[")
    assert len(problem.message) < 80


def test_every_setting_has_a_label_and_one_help_text():
    for section in RunConfig.model_fields.values():
        for name, field in section.annotation.model_fields.items():
            assert field.title, name
            assert field.description, name
            assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["adapter.method=lora", "model.quantization=nf4"], "QLoRA"),
        (["adapter.method=lora"], "LoRA"),
        (["adapter.method=ia3", "model.quantization=int8"], "IA3 on int8"),
        (["adapter.method=none"], "Full fine-tuning"),
    ],
)
def test_methods_are_called_as_people_call_them(overrides, name):
    assert config_from_mapping(with_overrides(MINIMAL, overrides)).method_name == name


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_next_to_quantized_weights_are_refused_with_the_reason(bias):
    problems = problems_of(f"adapter.bias={bias}", "model.quantization=nf4")

    assert set(problems) == {"adapter.bias"}
    assert "rounds the biases of layers with nf4 weights to 16 bits" in problems["adapter.bias"]
    config_from_mapping(with_overrides(MINIMAL, (f"adapter.bias={bias}",)))

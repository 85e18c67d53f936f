"""The short form of a script: in the shape of the usual tutorials, at most 70 lines, and it trains."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from engine.config.load import config_from_mapping
from engine.config.methods.registry import METHODS
from engine.config.objectives import OBJECTIVES
from engine.config.presets import list_presets
from engine.config.training import TrainingConfig
from engine.errors import DatasetError, EngineError, RunError
from engine.export.script.facts import _TRL_DEFAULTS, NOT_EXPORTED
from engine.export.script.facts import facts as example
from engine.export.script.write import gather_script_facts, write_script, write_short_script
from tests.e2e.test_scripts_for_real import ONE_BY_ONE, run_alone
from tests.export.test_script import CHAT, assert_whole, make_config, write_lines

MOST_LINES = 70


@pytest.mark.exhaustive
@pytest.mark.parametrize("preset", [preset.name for preset in list_presets()])
def test_the_short_form_of_every_preset_is_short_and_whole(preset, home, tmp_path):
    config = next(one for one in list_presets() if one.name == preset).load()
    try:
        facts = gather_script_facts(config, home)
    except EngineError:  # its data is on the Hub: the same settings on rows that are here
        sample = config.dataset.model_copy(update={"source": "sample:lab-chats", "format": "auto", "column_map": {}})
        facts = gather_script_facts(config.model_copy(update={"dataset": sample}), home)

    text = write_short_script(facts)

    compile(text, "script", "exec")
    assert len(text.splitlines()) <= MOST_LINES
    assert_whole(text, tmp_path)
    objective = OBJECTIVES[config.training.objective]
    for word in (
        "LoraConfig(",
        f"{objective.trl}Config(",
        f"{objective.trl}Trainer(",
        "merge_and_unload()",
        "push_to_hub",
        "Leaves out",
    ):
        assert word in text
    assert ("BitsAndBytesConfig(" in text) == (config.model.quantization != "none")


@pytest.mark.e2e
def test_short_scripts_train(tiny_model_folder, home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = [{"prompt": f"Q {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(12)]
    preferences = {"objective": "dpo", "loss_type": ["sigmoid", "sft"]}
    for name, rows, training in (("answers", CHAT, {}), ("pairs", pairs, preferences)):
        source = write_lines(tmp_path / f"{name}.jsonl", rows)
        config = make_config(tiny_model_folder, str(source), {"max_steps": 2, "max_length": 64, **training})
        (tmp_path / f"{name}.py").write_text(write_short_script(gather_script_facts(config, home)))

    written = run_alone("-c", ONE_BY_ONE, tmp_path / "answers.py", tmp_path / "pairs.py", folder=tmp_path)

    merged = [folder for folder in tmp_path.iterdir() if folder.name.endswith("-merged")]
    assert len(merged) == 2
    assert all((folder / "model.safetensors").is_file() for folder in merged)
    assert written.count("train_loss") == 2
    assert "rewards/margins" in written


def test_rows_that_tutorials_cannot_read_are_refused(tiny_model_folder, home, tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", [*CHAT, "{broken\n"])

    with pytest.raises(DatasetError, match="cannot read"):
        write_short_script(gather_script_facts(make_config(tiny_model_folder, str(source)), home))


def test_what_is_left_out_as_a_default_is_one_of_trl():
    from trl import SFTConfig

    defaults = {field.name: field.default for field in fields(SFTConfig)}

    assert {name: defaults[name] for name in _TRL_DEFAULTS} == _TRL_DEFAULTS


PAIRS = replace(
    example.data,
    format="preference",
    columns={"prompt": "prompt", "chosen": "win", "rejected": "lose"},
    turn_columns=set(),
)
RATINGS = replace(PAIRS, format="kto", columns={"prompt": "prompt", "completion": "answer", "label": "good"})

# Settings whose default is not a number or a switch.
OTHERS: dict[str, dict[str, object]] = {
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "early_stopping_patience": {"early_stopping_patience": 3},
    "optim": {"optim": "adafactor"},
    "report_to": {"report_to": ["tensorboard"]},
    "train_sampling_strategy": {"train_sampling_strategy": "random"},
    "eval_steps": {"eval_steps": 7},
    "save_steps": {"save_steps": 7},
    "max_steps": {"max_steps": 7},
    "objective": {"objective": "orpo"},
    "loss_type": {"loss_type": ["hinge"]},
    "loss_weights": {"loss_weights": [2.0]},
    "label_smoothing": {"label_smoothing": 0.1},
}


def other_value(name: str) -> dict[str, object]:
    """A value of a setting that differs from its default."""
    default = TrainingConfig.model_fields[name].default
    if name in OTHERS:
        return OTHERS[name]
    return {name: not default if isinstance(default, bool) else default / 2 if 0 < default < 1 else default + 1}


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("write", [write_script, write_short_script], ids=["faithful", "short"])
@pytest.mark.parametrize("name", TrainingConfig.model_fields)
def test_every_training_setting_reaches_the_script_or_the_list_of_exceptions(name, write):
    # What an objective alone reads shows in a script of that objective.
    reads = next((one for one in OBJECTIVES.values() if name in one.settings), None)
    data = (
        example.data
        if reads is None and name != "objective"
        else (PAIRS if reads is not OBJECTIVES["kto"] else RATINGS)
    )
    base = {"objective": reads.name if reads else "dpo" if data is PAIRS else "sft", "loss_type": ["sigmoid"]}
    base = base if reads is OBJECTIVES["dpo"] else {"objective": base["objective"]}

    def script(values: dict) -> str:
        training = {"early_stopping_patience": None, **base, **values}  # with it, others have no effect
        settings = {"model": {"id": "a/b"}, "dataset": {"source": "rows.jsonl"}, "training": training}
        model = example.model.__class__("a/b", "bfloat16", on_cpu=False, tokenizer=example.model.tokenizer)
        return write(example.__class__(config_from_mapping(settings), data, model))

    assert (script(other_value(name)) != script({})) == (name not in NOT_EXPORTED)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
def test_both_forms_are_whole_for_every_method(method, tmp_path):
    settings = {"model": {"id": "a/b"}, "dataset": {"source": "rows.jsonl"}, "adapter": {"method": method}}
    written = replace(example, config=config_from_mapping({**settings, "training": {"max_steps": 20}}))

    for text in (write_script(written), write_short_script(written)):
        compile(text, "script", "exec")
        assert_whole(text, tmp_path)
        assert METHODS[method].peft_class in text


def test_every_exception_names_a_setting_and_its_reason():
    assert NOT_EXPORTED.keys() <= TrainingConfig.model_fields.keys()
    assert all(NOT_EXPORTED.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto"])
@pytest.mark.parametrize("start", [None, "adapter"])
def test_scripts_of_preferences_are_whole_and_name_trls_trainer(objective, start, tmp_path):
    settings = {"model": {"id": "a/b"}, "dataset": {"source": "rows.jsonl"}, "training": {"objective": objective}}
    model = replace(example.model, warm_start=start)
    data = RATINGS if objective == "kto" else PAIRS
    written = replace(example, config=config_from_mapping(settings), data=data, model=model)

    faithful, short = write_script(written), write_short_script(written)

    for text in (faithful, short):
        compile(text, "script", "exec")
        assert_whole(text, tmp_path)
    assert len(short.splitlines()) <= MOST_LINES
    assert f"{objective.upper()}Trainer(" in short
    assert f"class Trainer({objective.upper()}Trainer):" in faithful
    assert ("is_trainable=True" in short) == (start is not None)
    assert ("peft_config=" in short) == (start is None)
    # TRL copies the adapter as a reference, which is right for one that training starts from.
    has_reference = OBJECTIVES[objective].has_reference
    assert ('delete_adapter("ref")' in faithful) == (has_reference and start is None)
    assert ('selected_adapters=["default"]' in faithful) == (has_reference and start is not None)


def test_virtual_tokens_that_trls_trainer_cannot_take_are_refused(tmp_path):
    settings = {
        "model": {"id": "a/b"}, "dataset": {"source": "rows.jsonl"}, "training": {"objective": "orpo"},
        "adapter": {"method": "prompt_tuning"},
    }  # fmt: skip

    with pytest.raises(RunError, match="ORPOTrainer does not support virtual tokens"):
        write_script(replace(example, config=config_from_mapping(settings), data=PAIRS))


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.trains_all])
def test_scripts_of_preferences_are_whole_for_every_method(method, tmp_path):
    settings = {"model": {"id": "a/b"}, "dataset": {"source": "rows.jsonl"}, "adapter": {"method": method}}
    config = config_from_mapping({**settings, "training": {"objective": "dpo", "max_steps": 20}})

    assert_whole(write_script(replace(example, config=config, data=PAIRS)), tmp_path)


@pytest.mark.parametrize(("disabled", "told"), [(True, False), (False, True)])
def test_a_script_names_dropout_only_where_there_is_some(disabled, told, tiny_model_folder, home, tmp_path):
    rows = [{"prompt": f"Q {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
    training = {"objective": "dpo", "disable_dropout": disabled}
    source = str(write_lines(tmp_path / "rows.jsonl", rows))
    config = make_config(tiny_model_folder, source, training, {"lora_dropout": 0.1})

    assert ("Dropout draws other random numbers" in write_script(gather_script_facts(config, home))) is told


STYLES = {
    "text": ({"prompt": "Q {n}?", "chosen": "good {n}", "rejected": "bad {n}"}, "dpo"),
    "whole conversations": (
        {
            "chosen": [{"role": "user", "content": "Q {n}?"}, {"role": "assistant", "content": "good {n}"}],
            "rejected": [{"role": "user", "content": "Q {n}?"}, {"role": "assistant", "content": "bad {n}"}],
        },
        "dpo",
    ),
    "HH": (
        {"chosen": "\n\nHuman: Q {n}?\n\nAssistant: good {n}", "rejected": "\n\nHuman: Q {n}?\n\nAssistant: bad {n}"},
        "dpo",
    ),
    "ranking": ({"instruction": "Q {n}?", "chosen": "good {n}", "rejected": "bad {n}"}, "orpo"),
    "LLaMA-Factory": (
        {
            "conversations": [{"from": "human", "value": "Q {n}?"}],
            "chosen": {"from": "gpt", "value": "good {n}"},
            "rejected": {"from": "gpt", "value": "bad {n}"},
        },
        "dpo",
    ),
    "ratings": ({"prompt": "Q {n}?", "completion": "good {n}", "label": True}, "kto"),
    "rated turns": (
        {
            "messages": [{"role": "user", "content": "Q {n}?"}, {"role": "assistant", "content": "good {n}"}],
            "kto_tag": True,
        },
        "kto",
    ),
}


@pytest.mark.parametrize(("row", "objective"), STYLES.values(), ids=STYLES)
def test_a_short_script_reads_preferences_as_the_run_does(row, objective, tiny_model_folder, home, tmp_path):
    lines = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(6)]
    source = write_lines(tmp_path / "rows.jsonl", lines)
    config = make_config(tiny_model_folder, str(source), {"objective": objective, "max_length": 64})
    text = write_short_script(gather_script_facts(config, home))
    head = text.split("\ntokenizer = ")[0]  # what the body does is TRL's
    names: dict[str, Any] = {}
    exec(compile(head, "script", "exec"), names)

    result = [names["to_preference"](line) for line in lines]

    asked, good, bad = (
        {"role": role, "content": words}
        for role, words in (("user", "Q 3?"), ("assistant", "good 3"), ("assistant", "bad 3"))
    )
    answers = {"completion": [good], "label": True} if objective == "kto" else {"chosen": [good], "rejected": [bad]}
    assert result[3] == {"prompt": [asked], **answers}

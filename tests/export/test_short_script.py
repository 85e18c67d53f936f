"""The short form of a script: in the shape of the usual tutorials, at most 70 lines, and it trains."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.config.presets import list_presets
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.passes.row_form import read_row_form
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError, EngineError
from loratory.engine.export.script.facts import NOT_EXPORTED, TRL_DEFAULTS, ScriptFacts
from loratory.engine.export.script.model_facts import ModelFacts
from loratory.engine.export.script.rewards import write_rewards
from loratory.engine.export.script.write import exact_head, gather_script_facts, literal, render, write_short_script
from tests.e2e.test_scripts_for_real import ONE_BY_ONE, run_alone
from tests.export.test_script import CHAT, COMBINATIONS, ROWS, assert_whole, make_config, write_lines

MOST_LINES = 70
MOST_LINES_OF_REWARDS = 90  # without the code of scorers


def short_script_of(config, home) -> str:
    return write_short_script(
        gather_script_facts(config, home), read_row_form(config.dataset, SourceOptions(home=home))
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("preset", [preset.name for preset in list_presets()])
def test_the_short_form_of_every_preset_is_short_and_whole(preset, home, tmp_path):
    config = next(candidate for candidate in list_presets() if candidate.name == preset).load()
    try:
        text = short_script_of(config, home)
    except EngineError:  # its data is on the Hub: the same settings on rows that are here
        sample = config.dataset.model_copy(update={"source": "sample:lab-chats", "format": "auto", "column_map": {}})
        text = short_script_of(config.model_copy(update={"dataset": sample}), home)

    compile(text, "script", "exec")
    rewards = write_rewards(config.training.rewards if config.training.objective == "grpo" else ())
    assert len(text.replace(rewards.code, "").splitlines()) <= (MOST_LINES_OF_REWARDS if rewards.code else MOST_LINES)
    assert_whole(text, tmp_path)
    objective = OBJECTIVES[config.training.objective]
    for word in (
        "LoraConfig(",
        f"{objective.trl}Config(",
        f"{objective.trl}Trainer(",
        "merge_and_unload()",
        "push_to_hub",
        "Differs from ",
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
        (tmp_path / f"{name}.py").write_text(short_script_of(config, home))

    output = run_alone("-c", ONE_BY_ONE, tmp_path / "answers.py", tmp_path / "pairs.py", folder=tmp_path)

    merged = [folder for folder in tmp_path.iterdir() if folder.name.endswith("-merged")]
    assert len(merged) == 2
    assert all((folder / "model.safetensors").is_file() for folder in merged)
    assert output.count("train_loss") == 2
    assert "rewards/margins" in output


def test_rows_that_tutorials_cannot_read_are_refused(tiny_model_folder, home, tmp_path):
    tool = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    for row in ("{broken\n", CHAT[0]["messages"], {"messages": [CHAT[0]["messages"][0], tool]}):
        source = write_lines(tmp_path / "rows.jsonl", [*CHAT, row])
        with pytest.raises(DatasetError, match=r"^Row 14 of rows.jsonl .*does not read as a run does"):
            short_script_of(make_config(tiny_model_folder, str(source)), home)


def test_mapped_roles_are_in_the_script_and_left_out_turns_need_an_exact_one(tiny_model_folder, home, tmp_path):
    talk = [{"from": "customer", "value": "Q?"}, {"from": "agent", "value": "A."}]
    source = str(write_lines(tmp_path / "rows.jsonl", [{"conversations": talk}]))
    role_map = {"customer": "user", "agent": "assistant"}
    text = short_script_of(make_config(tiny_model_folder, source, role_map=role_map), home)
    names: dict[str, Any] = {}
    exec(next(line for line in text.splitlines() if line.startswith("ROLES = ")), names)
    assert names["ROLES"] == role_map

    with pytest.raises(DatasetError, match=r'^Row 1 of rows.jsonl has turns of "customer", which are left out'):
        short_script_of(make_config(tiny_model_folder, source, role_map={**role_map, "customer": ""}), home)


def test_what_is_left_out_as_a_default_is_one_of_trl():
    from trl import SFTConfig

    defaults = {field.name: field.default for field in fields(SFTConfig)}

    assert {name: defaults[name] for name in TRL_DEFAULTS} == TRL_DEFAULTS


# Settings whose default is not a number or a switch.
OTHERS: dict[str, dict[str, object]] = {
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "early_stopping_patience": {"early_stopping_patience": 3},
    "optim": {"optim": "adafactor"},
    "report_to": {"report_to": ["tensorboard"]},
    "train_sampling_strategy": {"train_sampling_strategy": "random"},
    "eval_steps": {"eval_steps": 7},
    "eval_max_new_tokens": {"eval_max_new_tokens": 7},
    "eval_prompts": {"eval_prompts": "1 | Why?"},
    "save_steps": {"save_steps": 7},
    "max_steps": {"max_steps": 7},
    "objective": {"objective": "orpo"},
    "loss_type": {"loss_type": ["hinge"]},
    "loss_weights": {"loss_weights": [2.0]},
    "label_smoothing": {"label_smoothing": 0.1},
}


def other_value(name: str) -> dict[str, object]:
    """Return a value of a setting that differs from its default."""
    default = TrainingConfig.model_fields[name].default
    if name in OTHERS:
        return OTHERS[name]
    return {name: not default if isinstance(default, bool) else default / 2 if 0 < default < 1 else default + 1}


MODEL = ModelFacts("a/b", "bfloat16", on_cpu=False)


def both_forms(config, home) -> tuple[str, str]:
    """Return the short form, and the exact one without its rows."""
    facts = ScriptFacts(config, MODEL)
    exact = render(
        facts.objective.name, facts=facts, head=exact_head(facts, []), accumulate=1, exact_arguments=facts.exact_arguments,
        peft_arguments=facts.peft_arguments, template="", tokens={},
    )  # fmt: skip
    return write_short_script(facts, read_row_form(config.dataset, SourceOptions(home=home))), exact


# Objectives that sample answers have no exact script; `test_reward_script` has their settings.
SCRIPTED = [objective for objective in OBJECTIVES.values() if not objective.samples_answers]
ELSEWHERE = {
    name for objective in OBJECTIVES.values() if objective.samples_answers for name in objective.settings
}.difference(*(objective.settings for objective in SCRIPTED))


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("name", [name for name in TrainingConfig.model_fields if name not in ELSEWHERE])
def test_every_training_setting_reaches_both_forms_or_the_list_of_exceptions(name, home, tmp_path):
    # What an objective alone reads shows in a script of that objective.
    reads = next((objective_traits for objective_traits in SCRIPTED if name in objective_traits.settings), None)
    objective = reads.name if reads is not None else "dpo" if name == "objective" else "sft"
    source = str(write_lines(tmp_path / "rows.jsonl", ROWS[objective]))
    base = {"objective": objective} | ({"loss_type": ["sigmoid"]} if reads is not None and objective == "dpo" else {})

    def forms(values: dict) -> tuple[str, str]:
        training = {"early_stopping_patience": None, **base, **values}  # with it, others have no effect
        settings = {"model": {"id": "a/b"}, "dataset": {"source": source}, "training": training}
        return both_forms(config_from_mapping(settings), home)

    (short, exact), (short_before, exact_before) = forms(other_value(name)), forms({})
    assert (short != short_before) == (name not in NOT_EXPORTED)
    assert (exact != exact_before) == (name not in {*NOT_EXPORTED, "max_length"})  # the rows are cut already


@pytest.mark.exhaustive
@pytest.mark.parametrize("start", [None, "adapter"])
@pytest.mark.parametrize(("method", "objective"), COMBINATIONS)
def test_short_scripts_are_whole_for_every_method_and_objective(method, objective, start, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", ROWS[objective]))
    settings = {
        "model": {"id": "a/b"}, "dataset": {"source": source}, "adapter": {"method": method},
        "training": {"objective": objective, "max_steps": 20},
    }  # fmt: skip
    config = config_from_mapping(settings)
    facts = ScriptFacts(config, replace(MODEL, warm_start=start))

    text = write_short_script(facts, read_row_form(config.dataset, SourceOptions(home=home)))

    compile(text, "script", "exec")
    assert_whole(text, tmp_path)
    assert len(text.splitlines()) <= MOST_LINES
    starts_warm = start is not None and objective != "sft"
    assert METHODS[method].trains_all or (f"{METHODS[method].peft_class}(" in text) != starts_warm
    assert ("is_trainable=True" in text) == starts_warm


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ('a "b"', '"a \\"b\\""'),
        ("é\n", '"é\\n"'),
        ({"a": [1, None, True]}, '{"a": [1, None, True]}'),
        ("\u2028", '"\\u2028"'),
    ],
)
def test_values_are_written_as_python(value, source):
    assert literal(value) == source
    assert eval(literal(value)) == value


def test_every_exception_names_a_setting_and_its_reason():
    assert NOT_EXPORTED.keys() <= TrainingConfig.model_fields.keys()
    assert all(NOT_EXPORTED.values())


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
    text = short_script_of(config, home)
    head = text.split("\ntokenizer = ")[0]  # what the body does is TRL's
    names: dict[str, Any] = {}
    exec(compile(head, "script", "exec"), names)

    result = [names["to_preference"](line) for line in lines]

    question, good, bad = (
        {"role": role, "content": content}
        for role, content in (("user", "Q 3?"), ("assistant", "good 3"), ("assistant", "bad 3"))
    )
    answers = {"completion": [good], "label": True} if objective == "kto" else {"chosen": [good], "rejected": [bad]}
    assert result[3] == {"prompt": [question], **answers}

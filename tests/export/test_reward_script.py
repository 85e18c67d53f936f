"""Scripts of runs that learn from rewards: plain TRL, with reward functions that give the scores of the scorers."""

from dataclasses import replace
from typing import Any

import pytest

from loratory.engine.config.objectives import GRPO, OBJECTIVES
from loratory.engine.data.passes.row_form import read_row_form
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError, RunError
from loratory.engine.export.job import ScriptOrder
from loratory.engine.export.script.facts import TRL_DEFAULTS, ScriptFacts
from loratory.engine.export.script.model_facts import ModelFacts
from loratory.engine.export.script.rewards import write_rewards
from loratory.engine.export.script.write import write_short_script
from loratory.engine.export.worker.script import write_exact_script
from loratory.engine.models.source import ModelSource
from loratory.engine.scoring.base import ScoredAnswer
from loratory.engine.scoring.registry import SCORERS
from loratory.engine.scoring.scorers.programs import FileScorer
from tests.any_scorer import scorer_from
from tests.e2e.test_scripts_for_real import run_alone
from tests.export.test_script import assert_whole, make_config, write_lines
from tests.scoring.more_examples import MORE_EXAMPLES

REFUSED = {"code_tests", "judge"}
WRITTEN = [name for name in SCORERS if name not in REFUSED]
EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name in WRITTEN
    for number, example in enumerate((*SCORERS[name].examples, *MORE_EXAMPLES[name]))
]
PROMPTS = [{"prompt": f"Add 1 and {n}.", "total": str(n + 1)} for n in range(12)]
LENGTH = {"scorer": "length"}


class Decoder:
    """A tokenizer whose tokens are the text."""

    def batch_decode(self, ids: list[str], **_: bool) -> list[str]:
        return ids


def config_for_rewards(source: str, model: Any = "a/b", **training: Any):
    return make_config(model, source, {"objective": "grpo", "rewards": [LENGTH], **training})


def script_of(config, home, **model: Any) -> str:
    facts = ScriptFacts(config, replace(ModelFacts(config.model.id, "float32", on_cpu=True), **model))
    return write_short_script(facts, read_row_form(config.dataset, SourceOptions(home=home)))


def functions_of(text: str) -> dict[str, Any]:
    """Run what a script defines before it loads the model."""
    names: dict[str, Any] = {"tokenizer": Decoder(), "__name__": "a_script"}
    exec(compile(text.split("\ntokenizer = ")[0], "script", "exec"), names)
    return names


def written_scores(scorers, answers: list[str], row: dict[str, Any], prompt: str = "") -> list[list[float | None]]:
    """Return what the written rewards give to answers, in a namespace without anything of ours."""
    rewards = write_rewards(scorers)
    names: dict[str, Any] = {"tokenizer": Decoder()}
    lines = [f"import {module}" for module in (*rewards.imports, *rewards.library_imports)]
    source = "\n".join([*lines, rewards.code])
    assert "loratory" not in source
    exec(compile(source, "rewards", "exec"), names)
    prompts = [[{"role": "user", "content": prompt}]] * len(answers)
    functions = [names["reward"](label, names[function], **settings) for label, function, settings in rewards.functions]
    assert [function.__name__ for function in functions] == [label for label, *_ in rewards.functions]
    return [
        function(prompts=prompts, completions=[], completion_ids=answers, row=[row] * len(answers), trainer_state=None)
        for function in functions
    ]


@pytest.mark.filterwarnings("ignore:.*gives no score")
@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_a_written_reward_gives_the_score_of_every_example(name, example, tmp_path):
    settings = dict(example.settings)
    if name == "file":
        (tmp_path / "score.py").write_text(FileScorer.example_file)
        settings["path"] = str(tmp_path / "score.py")
    scorer = scorer_from({"scorer": name, **settings})

    scores = written_scores([scorer], [example.answer], dict(example.columns))

    assert scores == [[None if example.score is None else pytest.approx(example.score)]]


ANSWERS = (
    "",
    "A",
    "4",
    "3.9",
    "It is Paris. ",
    "PARIS!",
    '{"age": 4}',
    "<think>B</think>\n4 words are here",
    "[1]",
    "1,000.5",
)
CELLS: tuple[Any, ...] = ("Paris", "4", 4.5, "B", ["Paris", "", 4], "1e3", [], "[]", {"name": "f"}, None)
OTHER_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "equals": ({"ignore_case": True}, {"ignore_punctuation": True}, {"ignore_reasoning": False}),
    "contains": ({"need": "share"}, {"need": "all", "whole_words": False}),
    "regex": ({"pattern": "(.)"}, {"pattern": r"(\d)", "column": "answer"}),
    "length": ({"unit": "characters", "at_least": 5, "at_most": 6, "falloff": 3}, {"at_least": 2, "falloff": 4}),
    "number": ({}, {"tolerance": 0.2}),
    "choice": ({}, {"choices_column": "several"}),
    "tool_call": ({"column": "answer"}, {"column": "answer", "partial_credit": True}),
    "json_schema": ({"json_schema": '{"type": "object"}'}, {"column": "answer"}),
}


@pytest.mark.filterwarnings("ignore:.*gives no score")
@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "file"])
def test_a_written_reward_and_its_scorer_agree_on_what_neither_expects(name):
    scorers = [scorer_from({"scorer": name, **settings}) for settings in OTHER_SETTINGS.get(name, ({},))]
    for cell in CELLS:
        row = {"answer": cell, "several": {"text": ["Paris", "B"]}}
        expected = [[scorer.score(ScoredAnswer("", answer, row)).score for answer in ANSWERS] for scorer in scorers]

        assert written_scores(scorers, list(ANSWERS), row) == expected, cell


def test_settings_of_each_scorer_count_and_two_of_a_kind_have_two_names():
    scorers = [
        scorer_from({"scorer": "equals"}),
        scorer_from({"scorer": "equals", "column": "other", "ignore_reasoning": False}),
    ]

    scores = written_scores(scorers, ["a", "<think>a</think>b"], {"answer": "b", "other": "a"})

    assert scores == [[0.0, 1.0], [1.0, 0.0]]
    assert [label for label, *_ in write_rewards(scorers).functions] == ["equals", "equals#2"]


def test_a_file_gets_prompt_and_columns_and_the_head_warns_of_no_sandbox(home, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def score(prompt, answer, column_answer, **columns): return float(prompt + column_answer == answer)"
    )
    scorer = scorer_from({"scorer": "file", "path": str(file)})

    assert written_scores([scorer], ["Q?4", "4"], {"answer": "4", "tag": "x"}, prompt="Q?") == [[1.0, 0.0]]
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))
    assert "without a sandbox" in script_of(config_for_rewards(source, rewards=[scorer.model_dump()]), home)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_scorer_that_needs_loratory_is_named(name, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))
    reward = {"scorer": name, **SCORERS[name].examples[0].settings}

    with pytest.raises(RunError, match=f"A script cannot have the reward {name}") as error:
        script_of(config_for_rewards(source, rewards=[LENGTH, reward]), home)

    assert "scorer: file" in str(error.value.fix)


TURNS = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}]
ROWS = {
    "prompts": ({"prompt": "Q?", "total": "4"}, TURNS[1:], None),
    "lists of turns": ({"prompt": TURNS, "total": "4"}, TURNS, None),
    "a system prompt": ({"prompt": "Q?", "system": "S", "total": "4"}, TURNS, None),
    "an answer": ({"prompt": "Q?", "completion": "4"}, TURNS[1:], "4"),
    "instructions": ({"instruction": "Q?", "output": "4"}, TURNS[1:], "4"),
    "conversations": ({"messages": [*TURNS, {"role": "assistant", "content": "4"}]}, TURNS, "4"),
    "a column of its own": ({"instruction": "Q?", "output": "4, of course", "answer": "4"}, TURNS[1:], "4"),
}


@pytest.mark.parametrize(("row", "prompt", "answer"), ROWS.values(), ids=ROWS)
def test_rows_become_prompts_with_their_columns(row, prompt, answer, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", [row] * 4))
    text = script_of(config_for_rewards(source, rewards=[LENGTH, {"scorer": "number", "column": "total"}]), home)
    assert_whole(text, tmp_path)

    result = functions_of(text)["to_prompt"](row)

    assert result == {"prompt": prompt, "row": row | ({} if answer is None else {"answer": answer})}


def test_plain_text_is_refused_and_so_is_an_exact_script(home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", [{"text": "Once."}] * 4))
    config = config_for_rewards(source)

    with pytest.raises(DatasetError, match="no prompts"):
        script_of(config, home)
    with pytest.raises(RunError, match="GRPO has no exact script"):
        write_exact_script(ScriptOrder(config=config, folder=tmp_path), ModelSource("a/b", "tiny"), home, print)


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments that a script gives to GRPOConfig."""
    call = text[text.index("GRPOConfig(\n") :].split("\n    ),")[0] + ")"
    return eval(call, {"GRPOConfig": dict, "OUTPUT": "output"})


VALUES: dict[str, Any] = {
    "beta": 0.04, "loss_type": "dr_grpo", "disable_dropout": False, "num_generations": 6, "max_completion_length": 33,
    "temperature": 0.7, "top_p": 0.9, "epsilon": 0.1, "epsilon_high": 0.28, "num_iterations": 2, "scale_rewards": "batch",
    "mask_truncated_completions": True,
}  # fmt: skip


def test_the_arguments_are_those_of_the_run_and_trl_takes_them(home, tmp_path):
    from trl import GRPOConfig

    assert VALUES.keys() | {"rewards", "generation", "vllm_gpu_memory_utilization"} == {*GRPO.settings}
    rewards = [LENGTH, {"scorer": "number", "column": "total", "weight": 0.5}]
    training = {**VALUES, "loss_type": ["dr_grpo"], "rewards": rewards, "per_device_train_batch_size": 3}
    training |= {"gradient_accumulation_steps": 5, "seed": 7, "max_steps": 9, "early_stopping_patience": 2}
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))

    text = script_of(config_for_rewards(source, **training), home)

    arguments = arguments_of(text)
    assert {name: arguments[name] for name in VALUES} == VALUES
    assert arguments["reward_weights"] == [1.0, 0.5]
    assert (arguments["seed"], arguments["max_steps"], arguments["metric_for_best_model"]) == (7, 9, "eval_reward")
    assert "max_length" not in arguments
    assert "<= 64" in text
    names = GRPOConfig(**{**arguments, "output_dir": str(tmp_path)})
    prompts = 3 * 5  # of a step of the run
    assert names.generation_batch_size == prompts * VALUES["num_generations"]
    assert names.per_device_train_batch_size == 3


@pytest.mark.parametrize("generation", ["own", "vllm"])
def test_a_script_lets_vllm_answer_where_the_run_does(generation, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))

    arguments = arguments_of(
        script_of(config_for_rewards(source, generation=generation, vllm_gpu_memory_utilization=0.4), home)
    )

    ours = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4}
    assert {name: value for name, value in arguments.items() if "vllm" in name} == (
        ours if generation == "vllm" else {}
    )
    assert "generation" not in arguments


def test_what_is_left_out_as_a_default_is_one_of_grpo():
    from dataclasses import fields

    from trl import GRPOConfig

    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    shared = TRL_DEFAULTS.keys() & defaults.keys()

    assert TRL_DEFAULTS.keys() - shared == {"packing"}
    assert {name: defaults[name] for name in shared} == {name: TRL_DEFAULTS[name] for name in shared}


def test_an_earlier_adapter_is_continued(home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))

    text = script_of(config_for_rewards(source), home, warm_start="adapter")

    assert_whole(text, tmp_path)
    assert "is_trainable=True" in text
    assert "LoraConfig(" not in text


def test_every_scorer_that_is_written_makes_one_whole_script(home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))
    rewards = [{"scorer": name, **SCORERS[name].examples[0].settings} for name in WRITTEN]

    text = script_of(config_for_rewards(source, rewards=rewards), home)

    assert_whole(text, tmp_path)
    assert "--exact" not in text
    assert "datasets jsonschema-rs regex rouge-score sacrebleu\n" in text
    assert functions_of(text)["reward"]
    assert [name for name in OBJECTIVES if OBJECTIVES[name].samples_answers] == ["grpo"]


@pytest.mark.e2e
def test_a_script_of_rewards_trains(tiny_model_folder, home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = str(write_lines(tmp_path / "rows.jsonl", PROMPTS))
    training = {"max_steps": 2, "num_generations": 4, "max_completion_length": 8, "gradient_accumulation_steps": 1}
    rewards = [LENGTH | {"at_most": 2, "falloff": 9}, {"scorer": "number", "column": "total", "weight": 0.5}]
    evaluated = {"early_stopping_patience": 3, "eval_steps": 1, "beta": 0.04}
    config = config_for_rewards(source, tiny_model_folder, rewards=rewards, **training, **evaluated)
    (tmp_path / "rewards.py").write_text(script_of(config, home))

    output = run_alone(tmp_path / "rewards.py", folder=tmp_path)

    for word in ("train_loss", "rewards/length/mean", "rewards/number/mean", "eval_reward"):
        assert word in output
    assert (tmp_path / "output-merged" / "model.safetensors").is_file()

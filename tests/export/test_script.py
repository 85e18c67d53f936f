"""Stand-alone scripts: they hold nothing of ours and nothing that is not needed, and make the run's very tokens.

Rows that are hard to read stand in test_script_rows.py, templates with ways of their own in test_script_templates.py.
"""

import argparse
import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cli import run_command
from engine.config.load import config_from_mapping, mapping_from_yaml
from engine.config.presets import find_preset
from engine.config.run import RunSection
from engine.config.training import TrainingConfig
from engine.data.passes.prepare import prepare_dataset
from engine.data.step_plan import EpochPlanner, PlanSettings, row_plan
from engine.errors import StorageError
from engine.export.script.write import gather_script_facts, write_script, write_short_script
from engine.inspector.worker.load_tokenizer import load_tokenizer
from engine.models.source import ModelSource
from engine.runs.checkpoints import Manifest
from engine.runs.history.events import ParametersData
from engine.runs.history.log import EventWriter
from engine.runs.run import RunFolder
from engine.training.checkpoints.folder import write_checkpoint

CHAT = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A number: {n}."}]}
    for n in range(12)
]
SYSTEM = [{"role": "system", "content": "Be brief."}]


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def make_config(model: Path, source: str, training: dict | None = None, adapter: dict | None = None, **dataset: Any):
    return config_from_mapping(
        {
            "model": {"id": str(model), "compute_dtype": "float32"},
            "adapter": {"r": 4, **(adapter or {})},
            "dataset": {"source": source, "eval_fraction": 0.25, **dataset},
            "training": {"max_length": 64, "early_stopping_patience": None, **(training or {})},
        }
    )


def training_of(seed: int, strategy: Any) -> TrainingConfig:
    """Six rows a step."""
    return TrainingConfig(
        seed=seed,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_length=64,
        train_sampling_strategy=strategy,
    )


def script_of(config, home, run=None) -> str:
    return write_script(gather_script_facts(config, home, run))


def names_of(config, home, run=None) -> dict:
    """What stands in the script, defined and not started."""
    return names_in(script_of(config, home, run))


def names_in(script: str) -> dict:
    """What stands in a script, defined and not started."""
    names: dict = {"__name__": "a_script"}
    exec(compile(script, "script", "exec"), names)
    return names


def sequences_of(script: str) -> tuple[list, list]:
    """What a script learns from and measures on, by its own functions."""
    names = names_in(script)
    options = argparse.Namespace(model=names["MODEL"], data=names["DATA"])
    parts = names["prepare"](names["load_tokenizer"](options.model), options)
    train, held_out = ([(one["input_ids"], one["labels"]) for one in part] for part in parts)
    return train, held_out


def sequences_of_run(config, home) -> tuple[list, list]:
    tokenizer, _ = load_tokenizer(ModelSource(config.model.id, "tiny"))
    data = prepare_dataset(
        config.dataset,
        seed=config.training.seed,
        max_length=config.training.max_length,
        tokenizer=tokenizer,
        home=home,
    )
    train, held_out = ([(row.input_ids, row.labels) for row in part] for part in (data.train, data.held_out))
    return train, held_out


def assert_whole(text: str, folder: Path) -> None:
    """There is nothing unused or undefined in it."""
    (folder / "script.py").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", str(folder / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def alpaca(folder: Path) -> Path:
    rows = [{"instruction": f"Count to {n}.", "input": "Slowly." * (n % 2), "output": f"One … {n}."} for n in range(12)]
    return write_lines(folder / "rows.jsonl", rows)


def with_broken_lines(folder: Path) -> Path:
    return write_lines(folder / "rows.jsonl", [CHAT[0], "{broken\n", *CHAT[1:], {"messages": []}])


def with_duplicates(folder: Path) -> Path:
    return write_lines(folder / "rows.jsonl", [*CHAT[:3] * 3, *CHAT])


def with_system_turns(folder: Path) -> Path:
    rows = [{"messages": [*SYSTEM * (n % 2), *row["messages"], *CHAT[n - 1]["messages"]]} for n, row in enumerate(CHAT)]
    return write_lines(folder / "rows.jsonl", rows)


def as_csv(folder: Path) -> Path:
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([["prompt", "completion"], *([f"Say {n};", f"It is\n{n}"] for n in range(12))])
    return folder / "rows.csv"


def as_packed_array(folder: Path) -> Path:
    with gzip.open(folder / "rows.json.gz", "wt") as file:
        json.dump(CHAT, file)
    return folder / "rows.json.gz"


def as_text(folder: Path) -> Path:
    (folder / "rows.txt").write_text("\n\n".join(f"Paragraph {n}\nof a text." for n in range(12)))
    return folder / "rows.txt"


CASES = {
    "a sample in Alpaca format": (lambda _: "sample:loratory-faq", {}),
    "a sample of conversations": (lambda _: "sample:lab-chats", {}),
    "Alpaca": (alpaca, {}),
    "broken lines": (with_broken_lines, {}),
    "duplicates": (with_duplicates, {}),
    "system turns": (with_system_turns, {}),
    "the last answer": (with_system_turns, {"train_on": "last_assistant"}),
    "everything": (with_system_turns, {"train_on": "all"}),
    "CSV": (as_csv, {}),
    "a packed JSON array": (as_packed_array, {}),
    "plain text": (as_text, {}),
    "nothing held out": (alpaca, {"eval_fraction": 0.0}),
    "some rows of all": (alpaca, {"max_samples": 7}),
}


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("name", CASES)
def test_a_script_makes_the_tokens_masks_and_split_of_the_run(name, tiny_model_folder, home, tmp_path):
    make, dataset = CASES[name]
    config = make_config(tiny_model_folder, str(make(tmp_path)), {"max_length": 400}, **dataset)

    train, held_out = sequences_of(script_of(config, home))

    expected_train, expected_held_out = sequences_of_run(config, home)
    assert train == expected_train
    assert held_out == expected_held_out
    assert bool(held_out) == (config.dataset.eval_fraction > 0)


def test_rows_that_say_the_same_stand_on_one_side_whatever_the_seed(tiny_model_folder, home, tmp_path):
    source = str(with_duplicates(tmp_path))

    for seed in range(8):
        config = make_config(tiny_model_folder, source, {"max_length": 400, "seed": seed})
        assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("training", "adapter"),
    [
        ({}, {}),
        ({"packing": True, "gradient_checkpointing": True}, {"lora_dropout": 0.1, "use_dora": True}),
        ({"early_stopping_patience": 2, "lr_scheduler_type": "cosine_with_min_lr"}, {"method": "ia3"}),
        ({"eval_steps": 5, "save_steps": 5, "max_steps": 20}, {"method": "prefix_tuning"}),
        ({"num_train_epochs": 1.5}, {"method": "none"}),
    ],
)
def test_a_script_is_whole_and_holds_nothing_that_it_does_not_use(tiny_model_folder, home, tmp_path, training, adapter):
    text = script_of(make_config(tiny_model_folder, str(alpaca(tmp_path)), training, adapter), home)

    compile(text, "script", "exec")
    assert "loratory" not in text.lower().split('"""', 2)[2].replace("as loratory prepared it", "")
    assert_whole(text, tmp_path)
    words = {
        "packing": "def pack_rows",
        "early_stopping_patience": "EarlyStoppingCallback",
        "use_dora": "use_dora=True",
    }
    for setting, word in words.items():
        assert (word in text) == bool({**training, **adapter}.get(setting))


@pytest.mark.parametrize(
    ("attention", "strategy", "batching"),
    [("eager", "group_by_length", "padded"), ("eager", "random", "padded"), ("auto", "group_by_length", "joined")],
)
def test_a_script_takes_the_rows_in_the_runs_order(tiny_model_folder, home, tmp_path, attention, strategy, batching):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "train_sampling_strategy": strategy}
    source = str(write_lines(tmp_path / "chat.jsonl", CHAT))
    config = make_config(tiny_model_folder, source, sizes)
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"attn_implementation": attention}),
            "run": RunSection(devices="cpu"),
        }
    )
    names = names_of(config, home)
    generator = np.random.default_rng(0)
    rows = [{"input_ids": [row] * int(generator.integers(1, 60))} for row in range(131)]
    settings = PlanSettings(training_of(config.training.seed, strategy), batching)
    planner = EpochPlanner([len(row["input_ids"]) for row in rows], settings)

    for epoch in range(2):
        batches = [[row["input_ids"][0] for row in batch] for batch in names["Batches"](rows, lambda: epoch)]  # noqa: B023
        assert len(batches) == len(names["Batches"](rows, None))
        steps = [[row for batch in batches[start : start + 3] for row in batch] for start in range(0, len(batches), 3)]
        planned = [[row for one in step.passes for row in one.rows] for step in planner.steps(epoch)]
        assert [sorted(step) for step in steps] == [sorted(step) for step in planned]
        if strategy == "group_by_length" and batching == "padded":
            assert batches == [list(one.rows) for step in planner.steps(epoch) for one in step.passes]


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_a_script_trains_no_first_token_from_virtual_tokens_as_the_run_does_not(
    tiny_model_folder, home, tmp_path, method
):
    config = make_config(tiny_model_folder, str(as_text(tmp_path)), None, {"method": method})
    collate = names_of(config, home)["collate"]

    batch = collate([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}])

    # With prefix tuning the labels are shifted by one, and with that the first is left out.
    first = [5, 8] if method == "prefix_tuning" else [-100, -100]
    assert batch["labels"].tolist() == [[first[0], 6, 7], [first[1], -100, -100]]


@pytest.mark.parametrize("write", [write_script, write_short_script])
def test_a_script_holds_the_text_of_a_long_prefix_once(write, tiny_model_folder, home, tmp_path):
    adapter = {"method": "prefix_tuning", "num_virtual_tokens": 40, "prefix_init_text": 'Say "yes".'}
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "chat.jsonl", CHAT)), None, adapter)

    script = write(gather_script_facts(config, home))

    assert script.count('Say \\"yes\\".') == 1
    assert_whole(script, tmp_path)


@pytest.mark.parametrize("begun", ["padded", "joined"])
def test_a_script_orders_rows_as_the_run_began_wherever_it_was_resumed(tiny_model_folder, home, tmp_path, begun):
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "chat.jsonl", CHAT)))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    settings = PlanSettings(training_of(7, "group_by_length"), begun)
    other = "joined" if begun == "padded" else "padded"
    with EventWriter(run.events, 2) as events:
        events.append(
            ParametersData(
                trainable=1, total=2, compute_dtype="float32", device="cpu", attn_implementation="sdpa", batching=other
            )
        )
    manifest = Manifest(step=5, files={}, row_plan=row_plan(settings, "rows"))
    write_checkpoint(run.checkpoints, manifest, lambda folder: (folder / "progress.json").write_text("{}"))

    assert gather_script_facts(config, home, run).model.groups_by_length == (begun == "padded")


def test_a_warm_start_that_leaves_the_runs_is_refused(tiny_model_folder, home, tmp_path):
    adapter = {"warm_start": "20260101-000000-000-abcd/../../elsewhere"}
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "d.jsonl", CHAT)), adapter=adapter)

    with pytest.raises(StorageError, match="outside its allowed folder"):
        gather_script_facts(config, home, RunFolder(home.runs / "20260102-000000-000-abcd"))


def test_what_is_done_otherwise_stands_at_the_head(tiny_model_folder, home, tmp_path):
    source = str(alpaca(tmp_path))
    config = make_config(
        tiny_model_folder, source, adapter={"lora_dropout": 0.1}, mix={"sample:lab-chats": 1.0}, max_samples=8
    )

    head = script_of(config, home).split('"""')[1]

    assert "Dropout draws other random numbers" in head
    assert "the run mixed sample:lab-chats in as well" in head


def test_a_model_that_was_spread_is_spread_by_the_script_too(tiny_model_folder, home, tmp_path):
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "d.jsonl", CHAT)))
    spread = config.model_copy(update={"run": RunSection(devices=(0, 1), device_map="balanced", launcher="local")})

    assert 'device_map="balanced"' in script_of(spread, home)
    assert "balanced" not in script_of(config, home)


def test_the_command_prints_a_script_or_the_settings_and_overwrites_nothing(home, tiny_model_folder, tmp_path, capsys):
    modules = ("engine.commands.export", "engine.commands.configs")
    chosen = ["script", "quickstart-cpu", "--set", f"model.id={tiny_model_folder}"]

    assert run_command(chosen, modules) == 0
    assert "SFTTrainer" in capsys.readouterr().out
    assert run_command([*chosen, "--yaml"], modules) == 0
    printed = config_from_mapping(mapping_from_yaml(capsys.readouterr().out))
    assert printed.training == find_preset("quickstart-cpu").load().training
    (tmp_path / "mine.py").write_text("mine")
    assert run_command([*chosen, "--out", str(tmp_path / "mine.py")], modules) == 1
    assert "mine.py cannot be written (File exists)" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text() == "mine"

"""Exact scripts: they hold nothing of ours and nothing that is not needed, and train the run's very tokens in its order."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loratory.engine.cli import run_command
from loratory.engine.config.load import config_from_mapping, mapping_from_yaml
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.presets import find_preset
from loratory.engine.config.run import RunSection
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.step_plan import EpochPlanner, PlanSettings, row_plan
from loratory.engine.errors import DatasetError, RunError, StorageError
from loratory.engine.export.job import ScriptOrder
from loratory.engine.export.script.write import gather_script_facts
from loratory.engine.export.worker.script import write_exact_script
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.source import ModelSource
from loratory.engine.runs.checkpoints import Manifest
from loratory.engine.runs.run import RunFolder
from loratory.engine.training.assembly import TRAINING_OBJECTIVES
from loratory.engine.training.batching.steps import StepBatches, TrainerSetup, choose_rows
from loratory.engine.training.checkpoints.folder import write_checkpoint

CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"It is {'so ' * n}{n}."},
        ]
    }
    for n in range(13)
]
PAIRS = [{"prompt": f"Q {n}?", "chosen": f"good {n}", "rejected": "bad " * (n + 1)} for n in range(12)]
RATINGS = [{"prompt": f"Q {n}?", "completion": "good " * (1 + n * 7 % 9), "label": n % 3 > 0} for n in range(23)]
TALKS = [
    {
        "conversations": [
            {"from": "customer", "value": f"Q {n}?"},
            {"from": "note", "value": "!"},
            {"from": "agent", "value": f"A {n}."},
        ]
    }
    for n in range(12)
]
ROLE_MAP = {"customer": "user", "note": "", "agent": "assistant"}
ROWS = {"sft": CHAT, "dpo": PAIRS, "orpo": PAIRS, "kto": RATINGS}
# Preferences are learned by adapters alone.
COMBINATIONS = [
    (method, objective)
    for method, traits in METHODS.items()
    for objective in ROWS
    if objective == "sft" or not traits.trains_all
]


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


class Exact:
    """An exact script with its rows, and what is defined in it, not started."""

    def __init__(self, config, home, folder: Path, run: RunFolder | None = None) -> None:
        folder.mkdir(exist_ok=True)
        order = ScriptOrder(config=config, folder=folder, run=run.path if run is not None else None)
        write_exact_script(order, ModelSource(config.model.id, "tiny"), home, lambda _: None)
        self.text = (folder / "train.py").read_text()
        rows = pq.read_table(folder / "rows.parquet").to_pylist()
        self.train = [row for row in rows if not row["held_out"]]
        self.held_out = [row for row in rows if row["held_out"]]
        self.names: dict = {"__name__": "a_script"}
        exec(compile(self.text, "script", "exec"), self.names)


def prepared(config, home):
    tokenizer, _ = load_tokenizer(ModelSource(config.model.id, "tiny"))
    return prepare_dataset(
        config.dataset, seed=config.training.seed, max_length=config.training.max_length, tokenizer=tokenizer, home=home,
        objective=objective_of(config),
    )  # fmt: skip


def as_in_script(row: Any) -> dict[str, Any]:
    result = {"input_ids": row.input_ids, "labels": row.labels}
    if row.rejected is not None:
        result |= {"rejected_ids": row.rejected.input_ids, "rejected_labels": row.rejected.labels}
    if row.desirable is not None:
        result |= {"desirable": row.desirable}
    return result


def assert_whole(text: str, folder: Path) -> None:
    """There is nothing unused or undefined in it."""
    (folder / "script.py").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", str(folder / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


CASES: dict[str, tuple[str, dict, dict]] = {
    "a sample": ("sample:loratory-faq", {"max_length": 400}, {}),
    "a mixture": ("sample:lab-chats", {"max_length": 400}, {"mix": {"sample:loratory-faq": 0.5}}),
    "everything trained": ("sft", {}, {"train_on": "all"}),
    "some rows of all": ("sft", {}, {"max_samples": 9}),
    "mapped roles": ("talks", {}, {"role_map": ROLE_MAP}),
    "nothing held out": ("sft", {}, {"eval_fraction": 0.0}),
    **{name: (name, {"objective": name}, {}) for name in ("dpo", "orpo", "kto")},
}


@pytest.mark.parametrize("name", CASES)
def test_the_rows_are_the_tokens_masks_and_split_of_the_run(name, tiny_model_folder, home, tmp_path):
    source, training, dataset = CASES[name]
    if source in (rows_of := {**ROWS, "talks": TALKS}):
        source = str(write_lines(tmp_path / "rows.jsonl", [*rows_of[source], "{broken\n"]))
    config = make_config(tiny_model_folder, source, training, **dataset)

    script = Exact(config, home, tmp_path / "exact")

    data = prepared(config, home)
    measured = choose_rows(data, PlanSettings(config.training)).held_out if config.dataset.eval_fraction else []
    for rows, expected in ((script.train, data.train), (script.held_out, measured)):
        assert [
            {key: written_row[key] for key in as_in_script(row)}
            for written_row, row in zip(rows, expected, strict=True)
        ] == [as_in_script(row) for row in expected]
    assert bool(script.held_out) == (config.dataset.eval_fraction > 0)


@pytest.mark.parametrize(
    ("attention", "strategy", "batching", "packing"),
    [
        ("eager", "group_by_length", "padded", False),
        ("eager", "random", "padded", False),
        ("auto", "group_by_length", "joined", False),
        ("auto", "group_by_length", "joined", True),
    ],
)
def test_a_script_takes_the_rows_in_the_runs_order(
    tiny_model_folder, home, tmp_path, attention, strategy, batching, packing
):
    training = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "train_sampling_strategy": strategy,
        "packing": packing, "num_train_epochs": 2,
    }  # fmt: skip
    source = str(write_lines(tmp_path / "chat.jsonl", CHAT))
    config = make_config(tiny_model_folder, source, training, eval_fraction=0.0)
    model = config.model.model_copy(update={"attn_implementation": attention})
    config = config.model_copy(update={"model": model, "run": RunSection(devices="cpu")})

    script = Exact(config, home, tmp_path / "exact")

    numbers = {tuple(row["input_ids"]): number for number, row in enumerate(script.train)}
    planner = EpochPlanner([len(row["input_ids"]) for row in script.train], PlanSettings(config.training, batching))
    for epoch in range(2):
        batches = [
            [numbers[tuple(row["input_ids"])] for rows in batch for row in (rows if packing else [rows])]
            for batch in script.names["Batches"](script.train, lambda: epoch)  # noqa: B023
        ]
        assert len(batches) == len(script.names["Batches"](script.train, None))
        steps = [[row for batch in batches[start : start + 3] for row in batch] for start in range(0, len(batches), 3)]
        planned = [[row for planned_pass in step.passes for row in planned_pass.rows] for step in planner.steps(epoch)]
        assert [sorted(step) for step in steps] == [sorted(step) for step in planned]
        if batching == "padded":
            assert batches == [list(planned_pass.rows) for step in planner.steps(epoch) for planned_pass in step.passes]


@pytest.mark.parametrize(
    ("attention", "strategy"), [("eager", "random"), ("eager", "group_by_length"), ("auto", "random")]
)
def test_the_mismatched_answers_of_a_step_are_those_of_the_run(
    attention, strategy, tiny_model_folder, home, tmp_path, monkeypatch
):
    training = {
        "objective": "kto", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "train_sampling_strategy": strategy, "num_train_epochs": 2,
    }  # fmt: skip
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "rows.jsonl", RATINGS)), training)
    model = config.model.model_copy(update={"attn_implementation": attention})
    config = config.model_copy(update={"model": model, "run": RunSection(devices="cpu")})
    script = Exact(config, home, tmp_path / "exact")
    objective = TRAINING_OBJECTIVES["kto"](config.training)
    settings = PlanSettings(config.training, "padded" if attention == "eager" else "joined")
    kl_ids: list[list[int]] = []
    original = objective.mismatched_sequence
    monkeypatch.setattr(
        objective,
        "mismatched_sequence",
        lambda *pair: kl_ids.append((sequence := original(*pair)).input_ids) or sequence,
    )
    data = prepared(config, home)
    steps = StepBatches(data.train, TrainerSetup(settings, 0, objective=objective))

    for planned in EpochPlanner(data.train.lengths(), settings).steps(1):
        steps.__getitems__(planned)

    assert [row["kl_ids"] for batch in script.names["Batches"](script.train, lambda: 1) for row in batch] == kl_ids


@pytest.mark.exhaustive(quick=4)
@pytest.mark.parametrize(("method", "objective"), COMBINATIONS)
def test_a_script_of_every_method_and_objective_is_whole(method, objective, tiny_model_folder, home, tmp_path):
    traits = METHODS[method]
    source = str(write_lines(tmp_path / "rows.jsonl", ROWS[objective]))
    adapter = {"method": method} | ({"num_virtual_tokens": 3} if "num_virtual_tokens" in traits.fields else {})
    config = make_config(tiny_model_folder, source, {"objective": objective, "max_steps": 20}, adapter)
    if objective == "orpo" and traits.virtual_tokens == "inputs":
        with pytest.raises(RunError, match="ORPOTrainer does not support virtual tokens"):
            Exact(config, home, tmp_path / "exact")
        return

    text = Exact(config, home, tmp_path / "exact").text

    assert_whole(text, tmp_path)
    assert "loratory" not in text.lower().split('"""', 2)[2]
    assert f"class Trainer({objective.upper()}Trainer):" in text
    assert (traits.peft_class or "from_pretrained") in text
    # TRL copies the adapter as a reference; the run's is the base.
    assert ('delete_adapter("ref")' in text) == (objective in ("dpo", "kto"))
    assert len(text.splitlines()) <= (150 if (method, objective) == ("lora", "sft") else 240)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_a_script_trains_no_first_token_from_virtual_tokens_as_the_run_does_not(
    tiny_model_folder, home, tmp_path, method
):
    (tmp_path / "rows.txt").write_text("\n\n".join(f"Paragraph {n}\nof a text." for n in range(12)))
    config = make_config(tiny_model_folder, str(tmp_path / "rows.txt"), None, {"method": method})
    collate = Exact(config, home, tmp_path / "exact").names["collate"]

    batch = collate([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}])

    # With prefix tuning the labels are shifted by one, and with that the first is left out.
    first = [5, 8] if method == "prefix_tuning" else [-100, -100]
    assert batch["labels"].tolist() == [[first[0], 6, 7], [first[1], -100, -100]]


@pytest.mark.parametrize("batching", ["padded", "joined"])
def test_a_script_orders_rows_as_the_run_began_wherever_it_was_resumed(tiny_model_folder, home, tmp_path, batching):
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "chat.jsonl", CHAT)))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    training = TrainingConfig(
        seed=7, per_device_train_batch_size=2, gradient_accumulation_steps=3, train_sampling_strategy="group_by_length"
    )
    plan = row_plan(PlanSettings(training, batching), "rows")
    write_checkpoint(
        run.checkpoints,
        Manifest(step=5, files={}, row_plan=plan),
        lambda folder: (folder / "progress.json").write_text("{}"),
    )

    assert gather_script_facts(config, home, run).model.pinned_order == plan.order


def test_a_warm_start_that_leaves_the_runs_is_refused(tiny_model_folder, home, tmp_path):
    adapter = {"warm_start": "20260101-000000-000-abcd/../../elsewhere"}
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "d.jsonl", CHAT)), adapter=adapter)

    with pytest.raises(StorageError, match="outside its allowed folder"):
        gather_script_facts(config, home, RunFolder(home.runs / "20260102-000000-000-abcd"))


def test_there_is_no_script_of_a_run_whose_rows_have_changed(tiny_model_folder, home, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.provenance.write_text(json.dumps({"dataset_fingerprint": "0" * 64}))
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "d.jsonl", CHAT)))

    with pytest.raises(DatasetError, match="have changed since this run was trained on them"):
        Exact(config, home, tmp_path / "exact", run)


@pytest.mark.parametrize(("disabled", "is_listed"), [(True, False), (False, True)])
def test_the_head_lists_what_differs_from_the_run(disabled, is_listed, tiny_model_folder, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", PAIRS))
    training = {"objective": "dpo", "disable_dropout": disabled}
    config = make_config(tiny_model_folder, source, training, {"lora_dropout": 0.1})

    head = Exact(config, home, tmp_path / "exact").text.split('"""')[1]

    assert ("Dropout draws other random numbers" in head) is is_listed


def test_a_model_that_was_spread_is_spread_by_the_script_too(tiny_model_folder, home, tmp_path):
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "d.jsonl", CHAT)))
    spread = config.model_copy(update={"run": RunSection(devices=(0, 1), device_map="balanced", launcher="local")})

    assert 'device_map="balanced"' in Exact(spread, home, tmp_path / "spread").text
    assert "balanced" not in Exact(config, home, tmp_path / "plain").text


def test_the_command_writes_each_form_and_overwrites_nothing(home, tiny_model_folder, tmp_path, capsys):
    modules = ("loratory.engine.commands.export", "loratory.engine.commands.configs")
    chosen = ["script", "quickstart-cpu", "--set", f"model.id={tiny_model_folder}"]

    assert run_command(chosen, modules) == 0
    assert "SFTTrainer" in capsys.readouterr().out
    assert run_command([*chosen, "--yaml"], modules) == 0
    config = config_from_mapping(mapping_from_yaml(capsys.readouterr().out))
    assert config.training == find_preset("quickstart-cpu").load().training
    (tmp_path / "mine.py").write_text("mine")
    assert run_command([*chosen, "--out", str(tmp_path / "mine.py")], modules) == 1
    assert "mine.py cannot be written (File exists)" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text() == "mine"
    assert run_command([*chosen, "--exact", str(tmp_path / "exact")], modules) == 0
    assert {file.name for file in (tmp_path / "exact").iterdir()} == {"train.py", "rows.parquet"}
    assert run_command([*chosen, "--exact", str(tmp_path / "exact")], modules) == 1
    assert "exact exists already and is not empty" in capsys.readouterr().err

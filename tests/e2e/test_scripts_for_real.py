"""Scripts executed by themselves reproduce the losses of the runs that they were printed from."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.cli import run_command
from loratory.engine.config.load import config_from_mapping, config_to_yaml
from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.history.run_history import RunHistory, read_history
from loratory.engine.runs.store import RunStore

pytestmark = pytest.mark.e2e

WAIT_SECONDS = 1500
SETTINGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_length": 128,
    "max_steps": 14,
    "early_stopping_patience": None,
}

# What is tried on a model of two layers, in float32, where nothing but the order of sums may differ: training and adapter.
TINY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"learning_rate": 2e-3}, {"method": "lora", "r": 4}),
    "ia3, packed": ({"learning_rate": 1e-2, "packing": True}, {"method": "ia3"}),
    "prefix_tuning": ({"learning_rate": 1e-2}, {"method": "prefix_tuning", "num_virtual_tokens": 4}),
    "full": ({"learning_rate": 1e-4}, {"method": "none"}),
    "dpo": (
        {"objective": "dpo", "learning_rate": 5e-3, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
        {"method": "lora", "r": 4, "warm_start": "lora"},
    ),
    "kto": (
        {"objective": "kto", "learning_rate": 5e-3, "desirable_weight": 1.3},
        {"method": "lora", "r": 4, "lora_dropout": 0.1},
    ),
    "orpo": ({"objective": "orpo", "learning_rate": 5e-3, "beta": 0.4}, {"method": "lora", "r": 4}),
}


def write_preferences(folder: Path, *, with_labels: bool) -> str:
    """Write 29 rows, of which 23 are trained on: the last step of an epoch of four has a batch of two, and one of one."""
    vocabulary = "sun rain wind snow hail fog".split()
    rows = []
    for number in range(29):
        phrase = [vocabulary[(5 * number + index) % 6] for index in range(2 + number % 5)]
        row: dict[str, Any] = {"prompt": f"Repeat {' '.join(phrase)} {number}"}
        if with_labels:
            row |= {"completion": " ".join(phrase[number % 2 :]), "label": number % 3 > 0}
        else:
            row |= {"chosen": " ".join(phrase), "rejected": " ".join(vocabulary[: 1 + number % 4])}
        rows.append(row)
    file = folder / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def train(config, folder: Path) -> str:
    """Train, and return the run's id."""
    (folder / "config.yaml").write_text(config_to_yaml(config))
    return json.loads(loratory("train", folder / "config.yaml", "--json"))["run_id"]


def run_here(*arguments: object, home: LoratoryHome | None = None) -> tuple[int, str, str]:
    """Run a command in this process, whose workers are forked; `test_runs_for_real` starts it as people do.

    Returns:
        Its exit code, and what it wrote to stdout and stderr.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        if home is not None:
            patch.setenv("LORATORY_HOME", str(home.root))
        code = run_command([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def loratory(*arguments: object, home: LoratoryHome | None = None) -> str:
    """Return what a command writes that succeeds, run as `run_here` does."""
    code, out, err = run_here(*arguments, home=home)
    assert code == 0, err
    return out


def run_alone(*arguments: object, folder: Path) -> str:
    """Run Python as someone would who has nothing of ours, and return what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LORATORY_HOME")}
    process = subprocess.run(
        [sys.executable, "-I", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def logged_by(script: Path) -> list[dict]:
    """Return what a script logged that was run with the folder next to it as its output."""
    out = script.with_name("out")
    assert (out / "tokenizer_config.json").is_file()
    return json.loads((out / "log_history.json").read_text())


def execute(script: Path) -> list[dict]:
    """Run a script as someone would who has only its folder, and return what it logged."""
    run_alone(script, "--output", script.with_name("out"), folder=script.parent)
    return logged_by(script)


def assert_same_losses(history: RunHistory, log: list[dict], within: float) -> None:
    steps = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    expected = dict(zip(history.steps.steps.tolist(), history.steps.losses.tolist(), strict=True))
    assert steps.keys() == expected.keys()
    assert steps == pytest.approx(expected, rel=within)
    measurements = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    run_measured = {point.step: point.eval_loss for point in history.evals}
    assert measurements.keys() == run_measured.keys()
    assert measurements == pytest.approx(run_measured, rel=within)


def script_of(home, run_id: str, folder: Path) -> tuple[RunHistory, Path]:
    loratory("script", run_id, "--exact", folder / "exact")
    return read_history(RunStore(home, local_owner()).get(run_id).folder.events), folder / "exact" / "train.py"


# Runs scripts one after the other, each in a process of its own; what they all import takes most of their time.
ONE_BY_ONE = """
import os, runpy, sys
import datasets, peft, torch, transformers, trl
import trl.experimental.orpo
for script in sys.argv[1:]:
    if os.fork() == 0:
        sys.argv = [script, "--output", os.path.join(os.path.dirname(script), "out")] if script.endswith("train.py") else [script]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    if os.wait()[1] != 0:
        sys.exit(f"{script} failed")
"""


@pytest.fixture(scope="module")
def reproduction(tiny_model_folder, tmp_path_factory):
    """Train a run with each of TINY and run its script; return the run's history and the script's log."""
    root = tmp_path_factory.mktemp("scripts")
    home = LoratoryHome(root / "home")
    histories: dict[str, RunHistory] = {}
    scripts: dict[str, Path] = {}
    runs: dict[str, str] = {}
    for name, (training, adapter) in TINY.items():
        folder = root / name.replace(", ", "-")
        folder.mkdir()
        objective = OBJECTIVES[training.get("objective", "sft")]
        dataset: dict[str, Any] = {"source": "sample:loratory-faq"}
        if objective.learns_preferences:
            rows = write_preferences(folder, with_labels="ratings" in objective.rows)
            dataset = {"source": rows, "eval_fraction": 0.2}
        start = {"warm_start": runs[adapter["warm_start"]]} if "warm_start" in adapter else {}
        config = config_from_mapping(
            {
                "model": {"id": str(tiny_model_folder), "compute_dtype": "float32"},
                "adapter": adapter | start,
                "dataset": dataset,
                "training": {**SETTINGS, **training},
            }
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LORATORY_HOME", str(home.root))
            runs[name] = train(config, folder)
            histories[name], scripts[name] = script_of(home, runs[name], folder)
    run_alone("-c", ONE_BY_ONE, *scripts.values(), folder=root)
    return {name: (histories[name], logged_by(scripts[name])) for name in TINY}


@pytest.mark.parametrize("name", TINY)
def test_every_method_and_objective_of_a_tiny_model_is_reproduced(name, reproduction):
    history, log = reproduction[name]

    assert len(history.evals) > 2
    # Averaging over batches instead of steps differs by 1e-3.
    assert_same_losses(history, log, within=1e-4 if "objective" in TINY[name][0] else 1e-3)

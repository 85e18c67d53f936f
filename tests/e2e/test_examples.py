"""The examples, as their heads say, with tiny settings."""

import csv
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from loratory.engine.config.results import SamplingConfig
from loratory.engine.evaluation.votes import AnswerModel, Vote, VotedAnswer, VotedTurn, Votes
from loratory.engine.paths import local_owner
from loratory.engine.runs.store import RunStore

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("training.max_steps=2", "training.max_length=64", "run.devices=cpu")


def run_example(name: str, *arguments: object) -> str:
    """Run an example with `loratory` on the PATH, and return its output."""
    program = [sys.executable] if name.endswith(".py") else ["sh"]
    process = subprocess.run(
        [*program, EXAMPLES / name, *map(str, arguments)],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-1000:] + process.stderr[-3000:]
    return process.stdout


def test_a_csv_becomes_a_model_votes_a_second_run_and_events_a_table(home, tmp_path, tiny_model_folder):
    model, data = f"model.id={tiny_model_folder}", tmp_path / "support.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("question", "answer"), *((f"Is {n} a rank?", f"Yes, {n} is one.") for n in range(30))]
        )

    output = run_example("csv_to_model.sh", data, tmp_path / "model", model, *TINY)

    (run,) = RunStore(home, local_owner()).list()
    assert run.id in output
    assert (tmp_path / "model" / "config.json").is_file()

    table = run_example("read_events.py", run.folder.path)
    assert [line.split()[0] for line in table.splitlines() if line[:1].isdigit()] == ["1", "2"]

    name, answers = AnswerModel(name="tuned", base=str(tiny_model_folder)), {}
    for side in ("good", "bad"):
        turn = VotedTurn(role="assistant", content=f"A {side} answer.")
        answers[side] = VotedAnswer(turns=(turn,), finish_reason="eos", model=name)
    for number in range(4):
        prompt = [VotedTurn(role="user", content=f"Question {number}?")]
        Votes(home).save(Vote.new(
            prompt, answers["good"], answers["bad"], verdict="left", source="chat", sampling=SamplingConfig(), time=datetime.now(UTC)
        ))  # fmt: skip

    assert "accuracy" in run_example("dpo_from_votes.sh", run.id, model, *TINY)


def test_a_sweep_prints_its_runs_by_held_out_loss(home, tmp_path, tiny_model_folder):
    lines = run_example("sweep.sh", "quickstart-cpu", f"model.id={tiny_model_folder}", *TINY).splitlines()

    losses = [float(line.split()[0]) for line in lines]
    assert len(losses) == 4
    assert losses == sorted(losses)
    configs = [run.folder.read_config() for run in RunStore(home, local_owner()).list()]
    assert {(config.adapter.r, config.training.learning_rate) for config in configs} == {
        (8, 1e-4), (8, 2e-4), (16, 1e-4), (16, 2e-4)
    }  # fmt: skip


def test_the_notebook_runs_with_a_live_chart(module_home):
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if "max_steps" in cell.source)
    settings.source = settings.source.replace(
        '"training.max_steps": 40', '"training.max_steps": 3, "dataset.max_samples": 40'
    ).replace('steps": 10', 'steps": 2')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORATORY_HOME", str(module_home.root))
        NotebookClient(notebook, timeout=900, kernel_name="python3").execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    charts = [
        output.data["application/vnd.plotly.v1+json"]
        for output in outputs
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    text = "".join(output.get("text", "") for output in outputs)
    (run,) = RunStore(module_home, local_owner()).list()
    assert [trace["name"] for trace in charts[-1]["data"]] == ["loss", "held out"]
    assert "completed" in charts[-1]["layout"]["title"]["text"]
    for sentence in ("trained tokens", "GiB expected", f"{run.id}: from a notebook", "tuned → "):
        assert sentence in text, sentence

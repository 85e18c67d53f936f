"""Real workers that train on preferences: from a warm start, killed and resumed, in two processes."""

import json

import pytest

from loratory.engine.runs.history.events import DataReportData
from loratory.engine.training.worker import EXIT_FINISHED
from tests.training.forked_ranks import train_on_two
from tests.training.worker_runs import WORDS, data_of_events, losses_of, require_losses_of

pytestmark = pytest.mark.e2e


def write_preferences(path, count=40):
    """Pairs of many lengths, in which the chosen answer has the words of the prompt."""
    with path.open("w") as file:
        for number in range(count):
            answer = [WORDS[(number * 7 + index) % len(WORDS)] for index in range(2 + number % 5)]
            other = [WORDS[(number * 3 + index) % len(WORDS)] for index in range(2 + number % 4)]
            row = {
                "prompt": f"Repeat {' '.join(answer)} {number}",
                "chosen": " ".join(answer),
                "rejected": " ".join(other),
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


@pytest.fixture
def create(runs, tmp_path):
    source = write_preferences(tmp_path / "pairs.jsonl")

    def make(adapter=None, **training):
        return runs.create(
            model={"compute_dtype": "float32"}, dataset={"source": source}, adapter=adapter or {}, training=training
        )

    return make


def adapter_of(run):
    return (run.folder.adapter / "adapter_model.safetensors").read_bytes()


def measured_by(run):
    return {data.step: (data.eval_loss, data.metrics) for data in data_of_events(run, "eval")}


@pytest.mark.parametrize("precomputes", [False, True], ids=["at each step", "precomputed"])
def test_a_killed_run_from_a_warm_start_resumes_bit_by_bit(precomputes, workers, runs, create):
    first = create(objective="orpo", max_steps=5)
    assert workers.run(first.folder.path) == EXIT_FINISHED
    start = {"warm_start": str(first.folder.adapter)}
    settings = {"objective": "dpo", "precompute_ref_log_probs": precomputes, "learning_rate": 5e-3}
    whole, run = (create(start, **settings) for _ in range(2))
    assert workers.run(whole.folder.path) == EXIT_FINISHED

    workers.run(run.folder.path, "training:step-7=kill")
    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert losses_of(run) == losses_of(whole)
    assert adapter_of(run) == adapter_of(whole) != adapter_of(first)
    assert measured_by(run) == measured_by(whole)
    # Before the first step the run is its own reference.
    loss, metrics = measured_by(whole)[0]
    assert loss == pytest.approx(0.693147, abs=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert measured_by(whole)[10] != measured_by(whole)[0]
    report: DataReportData = data_of_events(whole, "data_report")[0]
    assert report.train_rows + report.eval_rows + report.dropped_rows == 40
    remaining = list((runs.home.cache / "reference").rglob("*.safetensors"))
    assert len(remaining) == (2 if precomputes else 0)  # to train on, and held out: once for all runs


def test_two_processes_share_a_step_of_pairs(workers, create):
    alone = create(objective="dpo", learning_rate=5e-3)
    together = create(objective="dpo", learning_rate=5e-3, gradient_accumulation_steps=1)
    assert workers.run(alone.folder.path) == EXIT_FINISHED

    train_on_two(together)

    require_losses_of(together, alone)
    for step, (loss, metrics) in measured_by(together).items():
        assert loss == pytest.approx(measured_by(alone)[step][0], rel=1e-3)
        assert metrics == pytest.approx(measured_by(alone)[step][1], rel=1e-3, abs=1e-4)

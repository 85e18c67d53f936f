"""Two processes with a share of each weight: FSDP2 trains, measures, saves and resumes as whole models do."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.workload import workload_of_step
from loratory.engine.models.folder import read_config
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.provenance import ADAPTER_WEIGHTS
from loratory.engine.runs.run import Run
from loratory.engine.training.checkpoints.state_files import OPTIMIZER_FILE, load_nested
from loratory.engine.training.faults import VARIABLE
from loratory.engine.training.worker import EXIT_FINISHED
from tests.export.conftest import few_questions  # noqa: F401 - a fixture
from tests.export.exporting import export
from tests.tiny_model import make_tiny_model
from tests.training.forked_ranks import launch_ranks, train_on_two
from tests.training.sharded_ranks import config_of
from tests.training.test_preference_runs import write_preferences
from tests.training.tiny_training import CPU
from tests.training.worker_runs import WorkerRuns, data_of_events, losses_of, require_losses_of, write_questions

pytestmark = pytest.mark.e2e

SHARDED = {"devices": "cpu", "launcher": "accelerate", "fsdp": "full_shard"}
# Rows of one pass each, and three held-out rows: the first process measures two, the second one.
STEPS = {
    "max_steps": 20, "save_steps": 10, "eval_steps": 10, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
    "max_length": 40, "save_total_limit": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def worker_runs(tiny_model_folder, tmp_path_factory) -> WorkerRuns:
    folder = tmp_path_factory.mktemp("sharded")
    return WorkerRuns(LoratoryHome(folder / "home"), tiny_model_folder, write_questions(folder / "questions.jsonl"))


def train(worker_runs: WorkerRuns, **where: str) -> Run:
    """Train a run of two processes from its beginning to its end."""
    run = worker_runs.create(model={"compute_dtype": "float32"}, training=STEPS, run=where)
    train_on_two(run)
    return run


@pytest.fixture(scope="module")
def copies(worker_runs) -> Run:
    """Train with a model in each process."""
    return train(worker_runs, devices="cpu", launcher="accelerate")


@pytest.fixture(scope="module")
def sharded_run(worker_runs) -> Run:
    return train(worker_runs, **SHARDED)


def test_losses_are_those_of_a_model_in_each_process(copies, sharded_run):
    require_losses_of(sharded_run, copies, rel=1e-4)


def test_held_out_rows_are_measured_although_processes_have_unequal_passes(copies, sharded_run):
    measurement, expected = data_of_events(sharded_run, "eval"), data_of_events(copies, "eval")
    assert [data.rows for data in measurement] == [3, 3, 3]
    assert [data.eval_tokens for data in measurement] == [data.eval_tokens for data in expected]
    assert [data.eval_loss for data in measurement] == pytest.approx([data.eval_loss for data in expected], rel=1e-4)


def test_a_checkpoint_holds_whole_tensors(copies, sharded_run):
    ours, theirs = sharded_run.folder.checkpoint(20), copies.folder.checkpoint(20)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    weights, expected = (load_file(folder / "adapter" / ADAPTER_WEIGHTS) for folder in (ours, theirs))
    assert {name: data.shape for name, data in weights.items()} == {name: data.shape for name, data in expected.items()}
    state, expected_state = (load_nested(folder / OPTIMIZER_FILE)["state"] for folder in (ours, theirs))
    for number, values in expected_state.items():
        torch.testing.assert_close(state[number], values, rtol=1e-2, atol=1e-6)


def test_the_adapter_loads_with_plain_peft(copies, sharded_run, tiny_model_folder):
    ids = torch.arange(20, 60).unsqueeze(0)

    def logits(run: Run) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        with torch.no_grad():
            return PeftModel.from_pretrained(base, run.folder.adapter)(ids).logits

    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)(ids).logits
    torch.testing.assert_close(logits(sharded_run), logits(copies), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(sharded_run), base, atol=1e-3)


@pytest.mark.parametrize(
    ("before", "after"), [("sharded_run", 1), ("copies", 2)], ids=["by one process", "from whole models"]
)
def test_it_resumes_with_another_number_of_processes(before, after, worker_runs, workers, request):
    first = request.getfixturevalue(before)
    run = worker_runs.create(model={"compute_dtype": "float32"}, training=STEPS, run=SHARDED if after > 1 else {})
    shutil.copytree(first.folder.checkpoint(10), run.folder.checkpoint(10))

    if after == 1:
        assert workers.run(run.folder.path) == EXIT_FINISHED
    else:
        train_on_two(run)

    assert losses_of(run) == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in losses_of(first) if step > 10]
    assert data_of_events(run, "eval")[-1].eval_loss == pytest.approx(
        data_of_events(first, "eval")[-1].eval_loss, rel=1e-3
    )


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"adapter": {"method": "none"}}, "training:step-5=kill"),
        ({"model": {"quantization": "nf4", "compute_dtype": "float32"}}, ""),
    ],
    ids=["full fine-tuning, resumed", "QLoRA"],
)
def test_other_trained_weights_are_sharded_too(sections, fault, worker_runs, workers, few_questions, tmp_path):  # noqa: F811
    short = {"training": {**STEPS, "max_steps": 6, "save_steps": 3, "eval_steps": 6, "gradient_checkpointing": True}}
    values = {"model": {"compute_dtype": "float32"}, **short, **sections}
    # One process takes twice as many rows at once for the same step.
    alone = worker_runs.create(**{**values, "training": {**short["training"], "gradient_accumulation_steps": 4}})
    assert workers.run(alone.folder.path) == EXIT_FINISHED

    run = worker_runs.create(**values, run=SHARDED)
    if fault:
        launch_ranks(
            "loratory.engine.training.worker", run.folder.path, folder=run.folder.path, environment={VARIABLE: fault}
        )
    train_on_two(run)

    assert [data.step for data in data_of_events(run, "resumed")] == ([3] if fault else [])
    require_losses_of(run, alone)
    assert data_of_events(run, "eval")[-1].eval_loss == pytest.approx(
        data_of_events(alone, "eval")[-1].eval_loss, rel=1e-3
    )
    trained = list(run.folder.adapter.glob("*.safetensors"))
    assert trained
    assert all(torch.isfinite(data).all() for path in trained for data in load_file(path).values())
    verification = export(
        worker_runs.home, run.folder.path, tmp_path / "merged", kind="merged", dtype="float32"
    ).verified
    assert verification.passed, verification


def test_pairs_are_compared_with_a_reference_that_is_sharded_too(worker_runs, workers, tmp_path):
    """From a warm start, whose weights replace the trained ones: computed at each step, or once before the first."""
    training = {**STEPS, "max_steps": 6, "save_steps": 3, "eval_steps": 3, "learning_rate": 5e-3, "save_total_limit": 9}
    values = {
        "model": {"compute_dtype": "float32"},
        "dataset": {"source": write_preferences(tmp_path / "pairs.jsonl", 31)},
    }
    first = worker_runs.create(**values, training={**training, "objective": "orpo", "max_steps": 3})
    assert workers.run(first.folder.path) == EXIT_FINISHED
    values |= {"adapter": {"warm_start": str(first.folder.adapter)}}
    alone = worker_runs.create(**values, training={**training, "objective": "dpo", "gradient_accumulation_steps": 4})
    assert workers.run(alone.folder.path) == EXIT_FINISHED

    for precomputes in (False, True):
        settings = {**training, "objective": "dpo", "precompute_ref_log_probs": precomputes}
        run = worker_runs.create(**values, training=settings, run=SHARDED)
        train_on_two(run)

        require_losses_of(run, alone)
        for data, expected in zip(data_of_events(run, "eval"), data_of_events(alone, "eval"), strict=True):
            # Rounding may turn a preference, of which there are three.
            names = [name for name in data.metrics if name.startswith("logps") or name.endswith(("chosen", "rejected"))]
            assert len(names) == 4
            for name in names:
                assert data.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-2, abs=1e-3), name
        assert losses_of(run)[-1][1] != pytest.approx(losses_of(run)[0][1], rel=1e-3), "the model has moved away"


def test_memory_of_each_process_is_what_the_estimate_says(tmp_path):
    folder, methods = make_tiny_model(tmp_path / "model", num_hidden_layers=8), ("lora", "none")

    results = launch_ranks("tests.training.sharded_ranks", folder, tmp_path, *methods, folder=tmp_path)

    assert results.returncode == 0, results.stderr[-3000:]
    measurements = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    shape = inventory_of(read_config(folder / "config.json", "tiny"))
    for method in methods:
        estimator, shared = Estimator(shape, CPU), workload_of_step(shape, config_of(str(folder), method), CPU)
        prediction = estimator.peak(replace(shared, data_parallel=1, sharded=2)).tensors.allocated_bytes
        most = [each[method] for each in measurements]
        alone = estimator.peak(replace(shared, data_parallel=1, sharded=1)).tensors.allocated_bytes
        # Seen: 1.9% less for LoRA, 1.0% more for full fine-tuning. Where a process must wait for its turn, gloo's threads may
        # hold what they have sent a moment longer.
        assert min(most) == pytest.approx(prediction, rel=0.1)
        assert max(most) < alone
        assert alone > 1.1 * prediction

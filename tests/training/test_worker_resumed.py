"""A real worker that resumes a run: at its end, after it had stopped by itself, with other processes than before."""

import json

import pytest

from loratory.engine.runs.checkpoints import MANIFEST, read_manifest
from loratory.engine.runs.control import request_stop
from loratory.engine.training import faults
from loratory.engine.training.worker import EXIT_FINISHED
from tests.training.forked_ranks import launch_ranks
from tests.training.worker_runs import data_of_events, history_of, losses_of, require_losses_of
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

BEST = {"max_steps": 40, "eval_steps": 5, "save_steps": 5, "learning_rate": 0.05, "max_grad_norm": 1.0}


def adapter_of(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_run_that_lacks_only_its_adapter_still_ends_with_the_best_weights(workers, runs):
    run = runs.create(
        model={"compute_dtype": "float32"}, training={**BEST, "learning_rate": 0.5, "load_best_model_at_end": True}
    )
    workers.run(run.folder.path, "folder:begun=kill")  # the last checkpoint stands, the adapter does not
    assert not run.folder.adapter.exists()
    losses = losses_of(run)

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert losses_of(run) == losses
    measurements = {data.step: data.eval_loss for data in data_of_events(run, "eval") if data.step}
    best = min(measurements, key=measurements.get)
    assert best < 40
    assert adapter_of(run.folder.adapter) == adapter_of(run.folder.checkpoint(best) / "adapter")
    assert data_of_events(run, "status")[-1].message == "Finished after step 40."


def test_a_run_that_stopped_early_is_not_trained_further_when_resumed(workers, runs):
    training = {**BEST, "max_steps": 200, "eval_steps": 1, "save_steps": 50, "early_stopping_patience": 2}
    run = runs.create(training={**training, "logging_steps": 50})
    workers.run(run.folder.path, "folder:begun=kill")
    stopped_at = max(data.step for data in data_of_events(run, "eval"))
    assert history_of(run).last_step == stopped_at  # a step that ends a run is logged, even between logging_steps

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert max(data.step for data in data_of_events(run, "eval")) == stopped_at
    assert history_of(run).last_step == stopped_at < 200
    last = data_of_events(run, "status")[-1].message
    assert last == f"Finished after step {stopped_at}. The held-out loss had stopped improving."
    measurements = {data.step: data.eval_loss for data in data_of_events(run, "eval") if data.step}
    best = min(measurements, key=measurements.get)
    assert best == stopped_at - 2
    assert adapter_of(run.folder.adapter) == adapter_of(run.folder.checkpoint(best) / "adapter")


def test_a_resumed_run_that_is_stopped_before_it_trains_reports_what_stands(workers, runs, tmp_path):
    run = runs.create(training={"max_steps": 12, "save_steps": 5})
    workers.run(run.folder.path, "training:step-8=kill")
    pid = workers.start(run.folder.path, f"session:load_model=wait:{tmp_path / 'go'}")
    wait_until(lambda: bool(data_of_events(run, "resumed")))
    request_stop(run)
    (tmp_path / "go").touch()
    workers.wait(pid)

    message = data_of_events(run, "status")[-1].message
    assert message.endswith("Nothing more was trained; the checkpoint of step 5 remains.")


def test_a_resumed_run_keeps_its_dtype_whatever_this_machine_would_choose(workers, runs):
    run = runs.create(training={"max_steps": 8, "save_steps": 5})
    workers.run(run.folder.path, "training:step-7=kill")
    (first,) = data_of_events(run, "parameters")
    manifest = run.folder.checkpoint(5) / MANIFEST
    content = json.loads(manifest.read_text())
    assert content["compute_dtype"] == first.compute_dtype
    other = {"float32": "bfloat16", "bfloat16": "float32"}[first.compute_dtype]  # as another machine had written it
    manifest.write_text(json.dumps(content | {"compute_dtype": other}))

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert data_of_events(run, "parameters")[-1].compute_dtype == other
    last = json.loads((run.folder.checkpoint(8) / MANIFEST).read_text())
    assert last["compute_dtype"] == other


def test_a_run_keeps_the_order_of_its_rows_when_they_are_batched_differently(workers, runs):
    training = {"max_steps": 12, "save_steps": 5}
    padding = {"compute_dtype": "float32", "attn_implementation": "eager"}
    whole, run = (runs.create(model=padding, training=training) for _ in range(2))
    workers.run(whole.folder.path)
    workers.run(run.folder.path, "training:step-7=kill")
    text = run.folder.config.read_text()
    assert "attn_implementation: eager" in text
    run.folder.config.write_text(text.replace("attn_implementation: eager", "attn_implementation: auto"))
    first_plan = read_manifest(run.folder.checkpoint(5)).row_plan

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert [data.batching for data in data_of_events(run, "parameters")] == ["padded", "joined"]
    assert data_of_events(run, "warning") == []
    require_losses_of(run, whole)
    last_plan = read_manifest(run.folder.checkpoint(12)).row_plan
    assert last_plan == first_plan.model_copy(update={"batching": "joined"})


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_with_another_number_of_processes_in_the_same_steps(workers, runs, before, after):
    training = {"max_steps": 10, "gradient_accumulation_steps": 2 // before, "save_steps": 5}
    whole = runs.create(model={"compute_dtype": "float32"}, training={**training, "gradient_accumulation_steps": 2})
    workers.run(whole.folder.path)
    run = runs.create(model={"compute_dtype": "float32"}, training=training)

    for processes in (before, after):
        fault = "training:step-7=raise" if processes == before else ""
        if processes == 1:
            code = workers.run(run.folder.path, fault)
        else:
            environment = {faults.VARIABLE: fault} if fault else {}
            code, _ = launch_ranks(
                "loratory.engine.training.worker", run.folder.path, folder=run.folder.path, environment=environment
            )
        assert (code == EXIT_FINISHED) == (processes == after)

    assert data_of_events(run, "resumed")[0].step == 5
    require_losses_of(run, whole)
    assert data_of_events(run, "step")[-1].trained_tokens == data_of_events(whole, "step")[-1].trained_tokens
    assert data_of_events(run, "step")[-1].epoch == data_of_events(whole, "step")[-1].epoch

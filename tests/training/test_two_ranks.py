"""Processes that share a step wait for each other's gradients, also where one of them has no trained tokens."""

import json
import math

import pytest

from loratory.engine.runs.checkpoints import MANIFEST, describe_files, read_manifest
from loratory.engine.runs.history.events import FailedData
from loratory.engine.runs.history.log import note_failure, noted_failure
from loratory.engine.training import faults
from loratory.engine.training.checkpoints.state_files import PROGRESS_FILE
from loratory.engine.training.worker import EXIT_FINISHED
from tests.training.forked_ranks import launch_ranks
from tests.training.tiny_training import make_config, train_tiny
from tests.training.two_ranks import EPOCHS, ROWS
from tests.training.worker_runs import data_of_events

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("head", "rows"), [("frozen", 2), ("trained", 2), ("frozen", 3)])
def test_a_process_without_trained_tokens_keeps_in_step(head, rows, tiny_model_folder, tmp_path):
    both = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": EPOCHS}
    adapter = {"method": "none"} if head == "trained" else {}
    alone = train_tiny(make_config(tiny_model_folder, adapter=adapter, training=both), ROWS[:rows], tmp_path)
    results = launch_ranks("tests.training.two_ranks", tiny_model_folder, tmp_path, head, rows, folder=tmp_path)

    assert results.returncode == 0, results.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == pytest.approx(alone.losses, rel=1e-4)
    assert len(first[0]) == EPOCHS * math.ceil(rows / 2)
    assert first[2] == [alone.trainer.progress.tokens, alone.trainer.progress.trained_tokens]
    assert first[3] == []  # steps that are not logged wait for no value
    assert first[4] == [False, False, False, True, True]  # the wish is counted as the third step begins


@pytest.mark.parametrize(("rank", "action"), [("1", "out_of_memory"), ("0", "out_of_memory"), ("1", "raise")])
def test_what_went_wrong_in_one_process_is_the_cause_of_the_run(runs, rank, action):
    run = runs.create(training={"max_steps": 20})
    fault = {faults.VARIABLE: f"training:pass#3={action}", "LORATORY_TEST_RANK": rank}

    results = launch_ranks("tests.training.faulty_rank", run.folder.path, folder=run.folder.path, environment=fault)

    assert results.returncode != 0
    (failure,) = data_of_events(run, "failed")
    if action == "out_of_memory":
        assert failure.cause == "out_of_memory", failure
        assert "memory" in failure.what
    else:
        assert "InjectedError" in failure.what


def test_the_first_process_alone_verifies_what_all_resume_from_and_end_with(workers, runs):
    run = runs.create(training={"max_steps": 10, "load_best_model_at_end": True})
    workers.run(run.folder.path, "training:step-7=kill")
    folder = run.folder.checkpoint(5)
    progress = json.loads((folder / PROGRESS_FILE).read_text())
    assert progress["best_step"] == 5
    (folder / PROGRESS_FILE).write_text(json.dumps(progress | {"best_loss": 0.1}))  # no later one is lower
    manifest = read_manifest(folder).model_copy(update={"files": describe_files(folder)})
    (folder / MANIFEST).write_text(manifest.model_dump_json())

    results = launch_ranks("tests.training.faulty_rank", run.folder.path, folder=run.folder.path)

    assert results.returncode == 0, results.stderr[-2000:]
    assert data_of_events(run, "resumed")[-1].step == 5
    assert data_of_events(run, "warning") == []
    assert "Going back to step 5, whose held-out loss was the lowest." in [
        status.message for status in data_of_events(run, "status")
    ]
    assert data_of_events(run, "status")[-1].phase == "finished"


def test_checkpoints_that_are_all_damaged_end_every_process_with_one_cause(workers, runs):
    run = runs.create(training={"max_steps": 12})
    workers.run(run.folder.path, "training:step-7=kill")
    (run.folder.checkpoint(5) / "progress.json").write_text("{}")

    results = launch_ranks("loratory.engine.training.worker", run.folder.path, folder=run.folder.path)

    assert results.returncode != 0
    (failure,) = data_of_events(run, "failed")
    assert "All checkpoints are damaged" in failure.what
    assert noted_failure(run.folder.path, 1) is None
    assert "reports why" in results.stderr


def test_the_failure_of_an_earlier_attempt_is_forgotten(workers, runs):
    run = runs.create(training={"max_steps": 2})
    note_failure(run.folder.path, 1, 0, FailedData(cause="out_of_memory", what="Memory ran out.", fix="Use less."))
    assert noted_failure(run.folder.path, 1).cause == "out_of_memory"

    assert workers.run(run.folder.path) == EXIT_FINISHED
    assert noted_failure(run.folder.path, 1) is None

"""What a worker does when the data, or the base, is not what the run was queued with or began on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loratory.engine.data.source import SourceOptions
from loratory.engine.files import sha256_of
from loratory.engine.runs.control import request_stop
from loratory.engine.runs.history.events import FailedData
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from loratory.engine.training.worker import EXIT_FAILED, EXIT_FINISHED
from tests.data.checks import check_dataset
from tests.replaced_base import scale_a_tensor, touch
from tests.training.worker_runs import data_of_events, events_of, write_questions

pytestmark = pytest.mark.e2e


@pytest.fixture
def queued_run(runs, home):
    """Queue a run of two steps with the fingerprint of its data, as a start pins it."""
    config = runs.create(training={"max_steps": 2, "save_steps": 1}).folder.read_config()
    report = check_dataset(config.dataset, SourceOptions(), seed=config.training.seed)
    return RunStore(home, "ann").create(config, Provenance(dataset_fingerprint=report.fingerprint))


def test_data_that_is_the_same_is_trained_on(workers, queued_run):
    assert workers.run(queued_run.folder.path) == EXIT_FINISHED


@pytest.mark.parametrize("attempts_before", [0, 1], ids=["start", "resume"])
def test_data_that_changed_since_the_run_was_filed_ends_it_with_the_reason(workers, queued_run, runs, attempts_before):
    for _ in range(attempts_before):
        request_stop(queued_run)
        assert workers.run(queued_run.folder.path) == EXIT_FINISHED
        queued_run.folder.stop_request.unlink()  # as a resume does
    write_questions(runs.data, count=31)

    assert workers.run(queued_run.folder.path) == EXIT_FAILED

    failure = [event.data for event in events_of(queued_run) if isinstance(event.data, FailedData)][-1]
    assert failure.cause == "dataset"
    assert "differ from those that this run was queued with" in failure.what
    assert "start a new run" in failure.fix


def test_a_run_resumes_on_the_weights_it_began_with_alone(workers, runs, tmp_path):
    base = Path(shutil.copytree(runs.model, tmp_path / "base"))
    run = replace(runs, model=base).create(training={"max_steps": 6, "save_steps": 1})
    weights = base / "model.safetensors"
    workers.run(run.folder.path, "training:step-3=kill")
    touch(base)
    workers.run(run.folder.path, "training:step-5=kill")

    hashes = {file.sha256 for data in data_of_events(run, "base_weights") for file in data.files}
    assert hashes - {""} == {sha256_of(weights)}

    scale_a_tensor(base)
    assert workers.run(run.folder.path) == EXIT_FAILED

    failure = data_of_events(run, "failed")[-1]
    assert failure.cause == "model"
    assert failure.what == "The weights of base have changed since this run began: model.safetensors differs."
    assert failure.fix == "Put the original files back and resume, or start a new run."

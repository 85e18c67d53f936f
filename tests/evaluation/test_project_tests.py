"""Runs that wait for the test sets of their project answer them, the oldest first; a run is never harmed."""

import logging

import pytest

from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.chat.contract import ChatTarget
from loratory.engine.errors import DeviceError, ModelError
from loratory.engine.evaluation.job import EvaluationJob
from loratory.engine.evaluation.project_tests import answer_project_tests, evaluate_run
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.processes.liveness import FileLock, ProcessIdentity
from loratory.engine.runs import projects
from loratory.engine.runs.projects import request_project_tests, save_project_tests, waiting_requests
from loratory.engine.runs.run import RunState
from tests.runs.test_projects import a_test, run_of


@pytest.fixture
def waiting(store, home, monkeypatch):
    """Return two runs that wait, the newer one of which asked first."""
    monkeypatch.setattr(projects, "spawn", lambda *_, **__: None)
    save_project_tests(store, "Paper", [a_test()])
    runs = [store.create(run_of("Paper")) for _ in range(2)]
    for run in reversed(runs):
        request_project_tests(home, run, RunState(state="completed"))
    return runs


def test_all_are_answered_although_one_fails(home, waiting, caplog):
    evaluated: list[str] = []

    def evaluate(_, run):
        evaluated.append(run.id)
        if len(evaluated) == 1:
            raise ModelError("The base is gone.", "Fetch it.")

    with caplog.at_level(logging.ERROR):
        answer_project_tests(home, evaluate, pause=lambda _: pytest.fail("nothing to wait for"))

    assert evaluated == [run.id for run in waiting]
    assert waiting_requests(home) == []
    assert f"{waiting[0].id} did not answer" in caplog.text
    assert "The base is gone." in caplog.text


def test_a_run_that_is_completed_as_the_answering_ends_is_answered(home, waiting, store, monkeypatch):
    evaluated: list[str] = []
    release, late = FileLock.release, store.create(run_of("Paper"))

    def release_late(lock):
        if late.id not in evaluated:  # its own process finds the lock taken
            request_project_tests(home, late, RunState(state="completed"))
        release(lock)

    monkeypatch.setattr(FileLock, "release", release_late)

    answer_project_tests(home, lambda _, run: evaluated.append(run.id))

    assert evaluated == [*(run.id for run in waiting), late.id]


def test_a_deleted_run_is_left_out(home, waiting, store):
    evaluated: list[str] = []
    waiting[0].folder.write_state(RunState(state="completed"))
    store.delete(waiting[0].id)

    answer_project_tests(home, lambda _, run: evaluated.append(run.id))

    assert evaluated == [waiting[1].id]


def test_a_device_in_use_is_waited_for_and_one_that_is_too_small_is_not(home, waiting):
    book, attempts, pauses = LeaseBook(home), [], []
    training = LeaseHolder(purpose="training", title="A run", process=ProcessIdentity.current())
    book.take(("cpu",), training)

    def evaluate(_, run):
        attempts.append(run.id)
        raise DeviceError("The device cannot be had.", "Wait.")

    def pause(seconds):
        pauses.append(seconds)
        book.release(training.process)

    answer_project_tests(home, evaluate, pause)

    assert len(pauses) == 1
    assert attempts == [waiting[0].id, waiting[0].id, waiting[1].id]


@pytest.mark.parametrize(("where", "there"), [("local", "local"), ("slurm", "slurm"), ("jobs", "local")])
def test_a_run_is_measured_where_its_folder_can_be_read(home, store, monkeypatch, where, there):
    requests = []
    monkeypatch.setattr(EvaluationJob, "run", lambda job: requests.append((job.home, job.request)))
    config = run_of("Paper")
    run = store.create(config.model_copy(update={"run": config.run.model_copy(update={"where": where})}))
    (home.root / DATABASE_FILE).touch()

    evaluate_run(home, run)

    ((own, request),) = requests
    assert request.target == ChatTarget.of_run(run.folder.path).model_copy(update={"where": there})
    assert (own.owner, own.is_guest) == ("ann", False)
